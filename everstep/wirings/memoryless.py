"""What layers without a state share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from everstep.cell import Cell, Layer
from everstep.state import State


class Memoryless(Cell):
    """A cell whose output is of x_t alone: its state is `()`. A subclass has `step` and `unroll`."""

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Nothing: `()`."""
        return ()

    def sublayers(self) -> Sequence[Layer]:
        """Nothing is scanned."""
        return ()
