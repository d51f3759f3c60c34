"""The base class of wirings around one cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from everstep.cell import Cell, Layer
from everstep.state import State


class CellWrapper(Cell):
    """A wiring around one `cell`, whose state and step are the cell's unless overridden."""

    cell: Any

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's."""
        return self.cell.initial_state(batch, like)

    def step(self, x: Any, state: State) -> tuple[Tensor, State]:
        """The cell's."""
        y, state = self.cell.step(x, state)
        return y, state

    def sublayers(self) -> Sequence[Layer]:
        """The cell."""
        return (self.cell,)
