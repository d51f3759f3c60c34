"""Outputs that come some steps late, so that they know some of the future."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.cell import Cell, Layer, check_size, scan
from everstep.state import State
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell


class Delay(Layer):
    """A cell whose outputs come d steps late: y_t is its output after it has seen x_{t+d} (Schuster & Paliwal 1997).

    The cell runs over x_0 … x_{n-1} and d zeros; its first d outputs are dropped, so that outputs and inputs line up.
    Every row gets its zeros at its own end, and every document at the step before the next reset. It sees d steps of
    the future, so it is a `Layer` and no `Cell`; a bidirectional layer sees them all. (Compared with it in Graves &
    Schmidhuber 2005, "Framewise phoneme classification with bidirectional LSTM".)

    >>> from everstep import Window
    >>> Delay(Window(1, 1), 2)(torch.tensor([[[1.0], [2.0], [3.0]]]))[0].flatten().tolist()
    [3.0, 0.0, 0.0]

    Args:
        cell: the cell inside, which can be stepped as the stream comes in, its outputs d steps late.
        d: how many steps.

    The final state is the cell's after the zeros; a row of length 0 gets none and keeps its state.

    Known limit: chunks of a sequence are not the whole of it, since each is followed by zeros.

    Raises:
        ValueError: d below 1.
        TypeError: an acausal layer.
    """

    def __init__(self, cell: Cell, d: int):
        super().__init__()
        check_cell("Delay", cell)
        self.cell, self.d = cell, check_size(self, "d", d)
        self.input_size, self.output_size = cell.input_size, cell.output_size

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's."""
        return self.cell.initial_state(batch, like)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """One scan over a longer line, on which every document is followed by d zeros."""
        batch, time = xs.shape[:2]
        steps = torch.arange(time, device=xs.device).expand(batch, time)
        starts = torch.zeros_like(steps, dtype=torch.bool) if resets is None else resets
        ends = torch.full((batch,), time, device=xs.device) if lengths is None else lengths
        starts = starts & (steps < ends[:, None])
        document = starts.cumsum(1)  # the number of the document of each step
        place = steps + self.d * document
        added = self.d * (document[:, -1] + 1)
        size = time + max(added.tolist(), default=0)
        line = xs.new_zeros(batch, size, self.input_size).scatter(
            1, place[..., None].expand_as(xs), zero_padding(xs, lengths)
        )
        again = None if resets is None else starts.new_zeros(batch, size).scatter(1, place, starts)
        plain = lengths is None and resets is None
        until = None if plain else torch.where(ends > 0, ends + added, 0)
        ys, state = scan(self.cell, line, state, lengths=until, resets=again, backend=backend)
        late = (place + self.d)[..., None].expand(-1, -1, self.output_size)
        return ys.gather(1, late), state

    def sublayers(self) -> Sequence[Layer]:
        """The cell."""
        return (self.cell,)

    def extra_repr(self) -> str:
        return f"d={self.d}"
