"""The gradient of shared parameters averaged over time instead of summed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everstep.cell import Cell
from everstep.state import State
from everstep.wirings.cell_wrapper import CellWrapper


class TimeAveraged(CellWrapper):
    """A cell whose parameter gradients are averaged over time, where BPTT sums them.

    The parameters θ are shared by all steps: dL/dθ = Σ_t ∂L/∂θ_t, with θ_t the parameters as used in step t. Here it is
    1/T Σ_t ∂L/∂θ_t, with T the mean length of the rows. Outputs, and all other gradients, are the cell's. It matters
    if a sequence has one target for many steps: the sum grows with T, and the learning rate would have to shrink.
    Where every step has a target, `fit` already divides by the number of targets.

    >>> from everstep import RNN
    >>> ys, h = TimeAveraged(RNN(3, 5))(torch.zeros(2, 7, 3))

    Args:
        cell: the cell inside; its parameters keep their names, and it keeps its fast paths.

    Known limit: `step` alone gives the gradient of one step.

    Raises:
        TypeError: a layer that is not a `Cell`.
    """

    def __init__(self, cell: Cell):
        if not isinstance(cell, Cell):
            raise TypeError(f"TimeAveraged: expected a Cell, but got {type(cell).__name__}; wrap the cells inside")
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The cell with parameters whose gradients are divided by the number of steps."""
        how = {"lengths": lengths, "resets": resets, "backend": backend}
        steps = xs.shape[1] if lengths is None else float(lengths.double().mean())
        shared = {name: _Divided.apply(p, max(steps, 1)) for name, p in self.cell.named_parameters()}
        return torch.func.functional_call(self.cell, shared, (xs, state), how)  # type: ignore[no-any-return]


class _Divided(torch.autograd.Function):
    """The same values; their gradient divided by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, number: float) -> Tensor:
        ctx.number = number
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.number, None
