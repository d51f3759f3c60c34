"""What the compiled engine refuses, by operation and line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws import refused
from test_fused import make
from test_laws import inputs
from torch import Tensor

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.explanation import explain
from everstep.native import toolchain

F64 = torch.float64
pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


class Bad(es.Cell):
    """Steps that no engine can follow."""

    def __init__(self, kind: str) -> None:
        super().__init__(3, 3)
        self.kind = kind

    def step(self, x, h):
        if self.kind == "dtype":
            return x, h.float()
        if self.kind == "shape":
            return x, torch.cat([h, h], -1)
        if self.kind == "control flow":
            if h.sum() > 0:
                return x, x
            return x, h
        if self.kind == "in place":
            h[:, :1].add_(x[:, :1])
            return h, h
        if self.kind == "random":
            h = h + torch.rand_like(h)
            return h, h
        if self.kind == "batch":
            h = h + x.mean(0)
            return h, h
        h = torch.sort(h + x, -1).values
        return h, h


class Uneven(es.Cell):
    """A state that is wider for one row than for several."""

    def __init__(self, width: int):
        super().__init__(3, 3)
        self.width = width

    def initial_state(self, batch, like):
        return torch.zeros(batch, 3, dtype=like.dtype), torch.ones(batch, self.width * (1 + (batch == 1)))

    def step(self, x, state):
        h = torch.tanh(x + state[0] + state[1].sum(1, keepdim=True) / (20 * self.width))
        return h, (h, state[1])


@pytest.mark.parametrize("width", [10, 10_000])  # of the second, tracing makes no state
@pytest.mark.parametrize("batch", [1, 2])
def test_a_state_whose_rows_depend_on_their_number(width: int, batch: int) -> None:
    cell, xs = Uneven(width), torch.randn(batch, 4, 3)
    assert (
        refused(fused, cell, xs) == "its initial state has rows of other shapes or dtypes for one row than for several"
    )
    assert torch.equal(cell(xs)[0], es.scan(cell, xs, backend="reference")[0])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dtype", "turns state leaf 'state' from (batch, 3) torch.float64 into (batch, 3) torch.float32"),
        ("shape", "turns state leaf 'state' from"),
        ("control flow", "decides by the value of a tensor"),
        ("in place", "changes a tensor in place by add_"),
        ("random", "draws random numbers by rand_like"),
        ("batch", "sets rows of the batch against one another by"),
        ("unknown", "uses sort"),
    ],
)
def test_refusals_name_the_reason_and_the_place(kind: str, reason: str) -> None:
    cell, xs = Bad(kind), torch.randn(2, 3, 3, dtype=F64)
    why = refused(fused, cell, xs, None, None)
    assert why is not None
    assert reason in why
    if kind not in ("dtype", "shape", "batch"):
        assert f"({__file__}:" in why
    with pytest.raises(ValueError, match="backend 'fused' cannot run Bad"):
        es.scan(cell, xs, backend="fused")
    assert "fused" in explain(cell, xs).passed
    if kind in ("dtype", "shape"):
        with pytest.raises(
            ValueError, match=r"Bad\.step gives another state than it gets: state leaf 'state' should have"
        ):
            es.scan(cell, xs)
    if kind in ("batch", "unknown", "control flow"):
        assert torch.equal(es.scan(cell, xs)[0], es.scan(cell, xs, backend="reference")[0])


def test_a_cell_that_is_not_compiled_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(toolchain, "_noticed", set())
    xs = torch.randn(2, 3, 3, dtype=F64)
    es.explain(Bad("unknown"), xs)
    es.scan(Bad("unknown"), xs, backend="reference")
    assert not caplog.records  # who asks knows
    for _ in range(2):
        es.scan(Bad("unknown"), xs)
        es.scan(es.Zoneout(Bad("unknown"), 0.5), xs)
    reason = "runs step by step, not compiled: its step uses sort, which the engine does not know"
    assert [told.split(" (")[0] for told in caplog.messages] == [f"Bad {reason}", f"Zoneout {reason}"]
    caplog.clear()
    es.scan(Bad("unknown"), xs.bfloat16())  # nothing that the cell does
    es.scan(es.Accumulator(3), xs.bfloat16())
    assert not caplog.records


class Mute(es.Cell):
    """Gives zeros, whatever comes."""

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return ()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return torch.zeros_like(x), state


def test_a_step_that_reads_nothing_is_refused() -> None:
    cell, xs = Mute(3, 3), torch.randn(2, 4, 3)
    assert torch.equal(es.scan(cell, xs)[0], torch.zeros(2, 4, 3))
    assert "reads no input" in (refused(fused, cell, xs, None, None) or "")


def test_half_precision_is_refused() -> None:
    cell = make(dtype=torch.bfloat16)
    assert "float32 or float64" in (refused(fused, cell, inputs(cell, 2, 3, torch.bfloat16), None, None) or "")
