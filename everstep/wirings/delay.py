"""Delayed outputs, which see some steps of the future."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.cell import Cell, Layer, check_size, scan
from everstep.state import State
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell


class Delay(Layer):
    """A cell with outputs delayed by d steps: y_t is its output after it has seen x_{t+d} (Schuster & Paliwal 1997).

    The cell runs over x_0 … x_{n-1} and then d zeros; its first d outputs are dropped, so that outputs align with
    inputs. The zeros follow the last step of each row, and of each document before a reset. It sees d steps of the
    future, so it is a `Layer`, not a `Cell`. (Graves & Schmidhuber 2005, "Framewise phoneme classification with
    bidirectional LSTM", compare it with a bidirectional layer, which sees the whole future.)

    >>> from everstep import Window
    >>> Delay(Window(1, 1), 2)(torch.tensor([[[1.0], [2.0], [3.0]]]))[0].flatten().tolist()
    [3.0, 0.0, 0.0]

    Args:
        cell: the cell inside, which can be stepped on live input, with outputs d steps late.
        d: the delay in steps.

    The final state is the cell's after the zeros; a row of length 0 gets no zeros and keeps its state.

    Known limit: running chunk by chunk differs from one run, since zeros follow each chunk.

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
        """One scan over a longer sequence, in which d zeros follow every document."""
        batch, time = xs.shape[:2]
        steps = torch.arange(time, device=xs.device).expand(batch, time)
        starts = torch.zeros_like(steps, dtype=torch.bool) if resets is None else resets
        ends = torch.full((batch,), time, device=xs.device) if lengths is None else lengths
        starts = starts & (steps < ends[:, None])
        document = starts.cumsum(1)  # the index of each step's document
        place = steps + self.d * document
        added = self.d * (document[:, -1] + 1)
        size = time + (self.d if resets is None else max(added.tolist(), default=0))
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
