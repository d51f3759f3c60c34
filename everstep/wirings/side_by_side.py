"""Cells side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer, scan
from everstep.state import State
from everstep.wirings.time_distributed import check_cell


class Parallel(Cell):
    """y_t = [y¹_t; y²_t; …]: cells side by side on the same input; the state is the tuple of their states.

    For example reservoirs of several time scales, or a reservoir beside its input (`Identity`), under one read-out.

    >>> from everstep import GRU, Identity
    >>> ys, (h, nothing) = Parallel(GRU(3, 5), Identity(3))(torch.zeros(2, 7, 3))
    >>> ys.shape
    torch.Size([2, 7, 8])

    Raises:
        TypeError: an acausal layer.
        ValueError: no cell, or cells of different input_size.
    """

    def __init__(self, *cells: Cell):
        for cell in cells:
            check_cell("Parallel", cell)
        sizes = sorted({cell.input_size for cell in cells})
        if len(sizes) != 1:
            came = f"those of {len(cells)} cells are {sizes}" if cells else "there is none"
            raise ValueError(f"Parallel: expected cells of one input_size, but {came}")
        super().__init__(sizes[0], sum(cell.output_size for cell in cells))
        self.cells = nn.ModuleList(cells)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The tuple of the cells' initial states."""
        return tuple(cell.initial_state(batch, like) for cell in self.sublayers())

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of every cell."""
        done = [cell.step(x, old) for cell, old in zip(self._cells(), state, strict=True)]
        return torch.cat([y for y, _ in done], -1), tuple(new for _, new in done)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The whole sequence through one cell after another."""
        done = [
            scan(cell, xs, old, lengths=lengths, resets=resets, backend=backend)
            for cell, old in zip(self.sublayers(), state, strict=True)
        ]
        return torch.cat([ys for ys, _ in done], -1), tuple(new for _, new in done)

    def sublayers(self) -> Sequence[Layer]:
        """The cells."""
        return self._cells()

    def _cells(self) -> Sequence[Cell]:
        return list(self.cells)  # type: ignore[arg-type]
