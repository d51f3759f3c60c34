"""Outputs that go past the caches (`native/far.h`) are the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.scanning import fused
from everstep.scanning.fused import table, toolchain

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")


class Recurrence(es.Affine):
    """h_t = a_t ∘ h_{t-1} + b_t with a_t and b_t given side by side as x_t."""

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of x."""
        a, b = x.chunk(2, -1)
        return a, b


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [32, 37, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_numbers(dtype: torch.dtype, size: int, rows: int, threads: int) -> None:
    cell, xs = Recurrence(2 * size, size), torch.rand(rows, 300, 2 * size, dtype=dtype, requires_grad=True)
    lengths = torch.tensor([300, 0, 17])[:rows]
    assert "if (far) es_far(" in fused._program(cell, xs).forward_code.source  # type: ignore[union-attr]
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for least in (1 << 60, 0):
            with pytest.MonkeyPatch.context() as changed:
                changed.setattr(table, "_FAR", least)
                table.layout.cache_clear()
                ys, h = es.scan(cell, xs, lengths=lengths, backend="fused")
                with torch.no_grad():
                    alone, _ = es.scan(cell, xs, lengths=lengths, backend="fused")
                found.append([ys, h, alone, *torch.autograd.grad(ys.square().sum(), xs)])
    finally:
        torch.set_num_threads(before)
        table.layout.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.testing.assert_close(found[0][0], es.scan(cell, xs, lengths=lengths, backend="reference")[0])
