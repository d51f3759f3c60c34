"""Both directions at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from everstep.cell import Cell, Layer, scan
from everstep.state import State
from everstep.wirings.time_distributed import check_cell


class Bidirectional(Layer):
    """One cell from left to right and another from right to left (Schuster & Paliwal 1997).

    y_t = merge(h→_t, h←_t): [h→; h←], their sum, or their mean. It sees the future, so it is a `Layer` and no `Cell`.
    Padding and resets hold for both directions: the backward cell starts afresh at the end of every document.

    >>> from everstep import LSTM
    >>> ys, (forward, backward) = Bidirectional(LSTM(3, 4), LSTM(3, 4))(torch.zeros(2, 7, 3))
    >>> ys.shape
    torch.Size([2, 7, 8])

    Raises:
        ValueError: cells of different input sizes, or of different output sizes where they are added.
    """

    def __init__(self, ahead: Cell, back: Cell, merge: Literal["concat", "sum", "mean"] = "concat"):
        super().__init__()
        if merge not in ("concat", "sum", "mean"):
            raise ValueError(f"Bidirectional: merge should be 'concat', 'sum' or 'mean', but is {merge!r}")
        check_cell("Bidirectional", ahead)
        check_cell("Bidirectional", back)
        if ahead.input_size != back.input_size or (merge != "concat" and ahead.output_size != back.output_size):
            raise ValueError(
                f"Bidirectional: the cells should agree, but are {ahead.input_size}→{ahead.output_size} and "
                f"{back.input_size}→{back.output_size} (merge={merge})"
            )
        self.ahead, self.back, self.merge = ahead, back, merge
        self.input_size = ahead.input_size
        self.output_size = ahead.output_size + (back.output_size if merge == "concat" else 0)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The forward and the backward cell's."""
        return self.ahead.initial_state(batch, like), self.back.initial_state(batch, like)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Two scans, merged."""
        right, first = scan(self.ahead, xs, state[0], lengths=lengths, resets=resets, backend=backend)
        ends = None if resets is None else _document_ends(resets, lengths)
        left, last = scan(self.back, xs, state[1], lengths=lengths, resets=ends, reverse=True, backend=backend)
        if self.merge == "concat":
            return torch.cat([right, left], -1), (first, last)
        total = right + left
        return total / 2 if self.merge == "mean" else total, (first, last)

    def scanned(self) -> Sequence[Layer]:
        """The two cells."""
        return (self.ahead, self.back)

    def extra_repr(self) -> str:
        return f"merge={self.merge}"


def _document_ends(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """The step before each reset, where the run from right to left must start afresh; resets in padding mark no end."""
    if lengths is not None:
        resets = resets & (torch.arange(resets.shape[1], device=resets.device) < lengths[:, None])
    return torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], 1)
