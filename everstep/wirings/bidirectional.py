"""A cell in each direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from everstep.cell import Cell, Layer, scan
from everstep.state import State, valid
from everstep.wirings.time_distributed import check_cell


class Bidirectional(Layer):
    """One cell from left to right and another from right to left (Schuster & Paliwal 1997).

    y_t = merge(h→_t, h←_t): [h→; h←], their sum, or their mean. It sees the future, so it is a `Layer`, not a `Cell`.
    Padding and resets apply to both directions: the backward cell restarts at the end of every document.

    >>> from everstep import LSTM
    >>> ys, (forward, backward) = Bidirectional(LSTM(3, 4), LSTM(3, 4))(torch.zeros(2, 7, 3))
    >>> ys.shape
    torch.Size([2, 7, 8])

    Attributes:
        forward_cell, backward_cell: the cell that runs from left to right, and the one from right to left.

    Raises:
        ValueError: cells of different input sizes, or of different output sizes if they are added.
    """

    RENAMED_CHILDREN: ClassVar = {"ahead": "forward_cell", "back": "backward_cell"}

    def __init__(self, forward_cell: Cell, backward_cell: Cell, merge: Literal["concat", "sum", "mean"] = "concat"):
        super().__init__()
        if merge not in ("concat", "sum", "mean"):
            raise ValueError(f"Bidirectional: merge should be 'concat', 'sum' or 'mean', but is {merge!r}")
        check_cell("Bidirectional", forward_cell)
        check_cell("Bidirectional", backward_cell)
        cells = forward_cell, backward_cell
        inputs, outputs = [c.input_size for c in cells], [c.output_size for c in cells]
        if inputs[0] != inputs[1] or (merge != "concat" and outputs[0] != outputs[1]):
            raise ValueError(
                f"Bidirectional: the cells should agree, but are {inputs[0]}→{outputs[0]} and {inputs[1]}→{outputs[1]} "
                f"(merge={merge})"
            )
        self.forward_cell, self.backward_cell, self.merge = forward_cell, backward_cell, merge
        self.input_size = inputs[0]
        self.output_size = sum(outputs) if merge == "concat" else outputs[0]

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The forward and the backward cell's."""
        return self.forward_cell.initial_state(batch, like), self.backward_cell.initial_state(batch, like)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Two scans, merged."""
        right, first = scan(self.forward_cell, xs, state[0], lengths=lengths, resets=resets, backend=backend)
        ends = None if resets is None else _document_ends(resets, lengths)
        left, last = scan(self.backward_cell, xs, state[1], lengths=lengths, resets=ends, reverse=True, backend=backend)
        if self.merge == "concat":
            return torch.cat([right, left], -1), (first, last)
        total = right + left
        return total / 2 if self.merge == "mean" else total, (first, last)

    def sublayers(self) -> Sequence[Layer]:
        """The two cells."""
        return (self.forward_cell, self.backward_cell)

    def extra_repr(self) -> str:
        return f"merge={self.merge}"


def _document_ends(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """The step before each reset, where the backward run must restart; resets in padding are ignored."""
    if lengths is not None:
        resets = resets & valid(lengths, resets.shape[1])
    return torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], 1)
