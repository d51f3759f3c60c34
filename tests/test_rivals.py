"""What `benchmarks/rivals.py` compares is the same work on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import everstep as es

theirs = pytest.importorskip(
    "torchrecurrent", reason="torchrecurrent is not installed: pip install torchrecurrent==0.2.5"
)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_every_cell_of_torchrecurrent_is_paired_with_one_of_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rivals_packages

    names = rivals_packages.catalogue()
    assert set(names) == {n for n in theirs.__all__ if f"{n}Cell" in theirs.__all__}
    xs = torch.randn(2, 5, 4)
    for name in names:
        layer, cell = rivals_packages.paired(name, 4)
        ys, want = cell(xs, backend="reference")[0], layer(xs)[0]
        assert ys.shape == want.shape, name
        if name not in rivals_packages.DIFFERENT:
            torch.testing.assert_close(ys, want, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_affine_recurrence_is_the_one_of_the_associative_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rivals

    a, b = torch.rand(2, 7, 3), torch.randn(2, 7, 3)
    want = rivals.scanned(a, b)
    for backend in ("reference", "parallel"):
        ys, _ = es.scan(rivals.Recurrence(3), torch.cat([a, b], -1), backend=backend)
        torch.testing.assert_close(ys, want, rtol=1e-5, atol=1e-6)


def test_the_lstm_by_hand_is_the_loop_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rivals

    cell, xs = rivals.ByHand(3), torch.randn(2, 5, 3)
    ys, _ = es.scan(cell, xs, backend="reference")
    torch.testing.assert_close(rivals.unrolled(cell, xs), ys, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rivals.hoisted(cell, xs), ys, rtol=1e-5, atol=1e-6)
