"""Outputs that go past the caches (`native/far.h`) are the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.scanning import fused
from everstep.scanning.fused import table, toolchain
from everstep.scanning.fused.program import Program

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")


class Recurrence(es.Affine):
    """h_t = a_t ∘ h_{t-1} + b_t with a_t and b_t given side by side as x_t."""

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of x."""
        a, b = x.chunk(2, -1)
        return a, b


class Momentum(es.Cell):
    """Two leaves, a parameter, numbers and another output: v = μ ∘ v⁻ - x / 4, h = h⁻ + v, y = 1 - h ∘ x."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.mu = nn.Parameter(torch.rand(size))

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_ones(batch, self.output_size), like.new_zeros(batch, self.output_size)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, v = state
        v = self.mu * v - x / 4
        h = h + v
        return 1 - h * x, (h, v)


Found = list[Tensor]


def near_and_far(threads: int, run: Callable[[], Found]) -> tuple[Found, Found]:
    """The same where outputs stay in the caches, and where they go past them."""
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for least in (1 << 60, 0):
            with pytest.MonkeyPatch.context() as changed:
                changed.setattr(table, "_FAR", least)
                table.layout.cache_clear()
                found.append(run())
    finally:
        torch.set_num_threads(before)
        table.layout.cache_clear()
    return found[0], found[1]


def source(cell: es.Cell, xs: Tensor) -> str:
    """Of the loop forward."""
    program = fused._program(cell, xs)
    assert isinstance(program, Program)
    return program.forward_code.source


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [32, 37, 496, 1040])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_numbers(dtype: torch.dtype, size: int, rows: int, threads: int) -> None:
    cell, xs = Recurrence(2 * size, size), torch.rand(rows, 300, 2 * size, dtype=dtype, requires_grad=True)
    lengths = torch.tensor([300, 0, 17])[:rows]
    assert "if (far) es_far(" in source(cell, xs)
    assert ("auto strip" in source(cell, xs)) == (size != 37)

    def run() -> Found:
        ys, h = es.scan(cell, xs, lengths=lengths, backend="fused")
        with torch.no_grad():
            alone, last = es.scan(cell, xs, lengths=lengths, backend="fused")
        return [ys, h, alone, last, *torch.autograd.grad(ys.square().sum(), xs)]

    near, far = near_and_far(threads, run)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))
    torch.testing.assert_close(near[0], es.scan(cell, xs, lengths=lengths, backend="reference")[0])


@pytest.mark.parametrize("kind", [Recurrence, Momentum])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_strips_reset_and_carry(rows: int, threads: int, kind: type[es.Cell]) -> None:
    """Many steps of some numbers at a time: with resets, a state that comes in, lengths and a share of the numbers."""
    size = 1040
    cell = Momentum(size).double() if kind is Momentum else Recurrence(2 * size, size)
    xs = torch.randn(rows, 300, cell.input_size, dtype=torch.float64)
    xs[:, 100] = torch.nan  # gone at the next reset
    state = cell.initial_state(rows, xs)
    state = tuple(leaf + 0.5 for leaf in state) if isinstance(state, tuple) else state + 0.5
    resets = torch.rand(rows, 300) < 0.05
    resets[:, 101] = True
    lengths = torch.tensor([300, 257])[:rows]
    assert "auto strip" in source(cell, xs)

    def run(backend: str = "fused") -> Found:
        with torch.no_grad():
            ys, last = es.scan(cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        return [ys, *(last if isinstance(last, tuple) else (last,))]

    near, far = near_and_far(threads, run)
    # where two products are added, compilers choose which of them is not rounded
    torch.testing.assert_close(far, near, equal_nan=True, rtol=0 if kind is Recurrence else 1e-13, atol=1e-14)
    torch.testing.assert_close(far, run("reference"), equal_nan=True, rtol=1e-12, atol=1e-12)


def test_strips_need_arithmetic_alone() -> None:
    """What a vector has no operator for is computed number by number."""

    class Rectified(Recurrence):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(super().step(x, state)[1])
            return h, h

    xs = torch.randn(2, 300, 128)
    cell = Rectified(128, 64)
    assert "auto strip" not in source(cell, xs)
    near, far = near_and_far(1, lambda: [es.scan(cell, xs, backend="fused")[0]])
    assert torch.equal(near[0], far[0])


def test_what_backward_needs_is_kept() -> None:
    """In training the state of every step stays, which strips do not leave."""
    cell, xs = Momentum(64).double(), torch.randn(2, 300, 64, dtype=torch.float64, requires_grad=True)
    assert "== nowhere" in source(cell, xs)

    def run(backend: str = "fused") -> Found:
        ys, _ = es.scan(cell, xs, backend=backend)
        return [ys, *torch.autograd.grad(ys.sum(), [xs, cell.mu])]

    _, far = near_and_far(1, run)
    torch.testing.assert_close(far, run("reference"))
