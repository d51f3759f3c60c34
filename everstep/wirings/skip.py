"""Connections that skip steps, and windows over the last inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.cell import Cell, Layer, check_size
from everstep.state import State, valid
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell


class TimeSkip(Cell):
    """A cell that reads its state or output of d steps ago (Lin 1996; El Hihi & Bengio 1996).

    By default y_t, s_t = cell(x_t, s_{t-d}), whose gradients pass T/d steps rather than T. With `beside`,
    y_t, s_t = cell([x_t; y_{t-d}], s_{t-1}), whose gradients have a shortcut; y_t = 0 for t ≤ 0.
    The state is the tuple of the last d states, the oldest first; with `beside`, it is s and the tuple of
    the last d outputs.

    >>> from everstep import RNN
    >>> ys, ring = TimeSkip(RNN(3, 5), 4)(torch.zeros(2, 7, 3))
    >>> len(ring)
    4
    >>> ys, (h, ring) = TimeSkip(RNN(3 + 5, 5), 4, beside=True)(torch.zeros(2, 7, 3))

    Args:
        cell: the cell inside; with `beside`, its inputs are x_t, then its own output.
        d: how many steps back.
        beside: keep the connection from the previous step.

    Known limit: it runs as a loop, even if the cell has a faster path. Without the connection from the previous step,
    the steps form d independent sequences; another layer has to join them.

    Raises:
        ValueError: d below 1, or with `beside` a cell that does not have more inputs than outputs.
    """

    def __init__(self, cell: Cell, d: int, *, beside: bool = False):
        check_cell("TimeSkip", cell)
        if beside and cell.input_size <= cell.output_size:
            raise ValueError(
                f"TimeSkip: beside the step before, the cell takes [x; y], but {type(cell).__name__} has input_size "
                f"{cell.input_size} and output_size {cell.output_size}"
            )
        super().__init__(cell.input_size - (cell.output_size if beside else 0), cell.output_size)
        self.cell, self.d, self.beside = cell, check_size(self, "d", d), beside

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's initial state d times; with `beside`, the cell's and zeros."""
        if self.beside:
            ring = tuple(like.new_zeros(batch, self.output_size) for _ in range(self.d))
            return self.cell.initial_state(batch, like), ring
        return tuple(self.cell.initial_state(batch, like) for _ in range(self.d))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step; the oldest entry of the ring makes room for the new one."""
        if self.beside:
            old, ring = state
            y, new = self.cell.step(torch.cat([x, ring[0]], -1), old)
            return y, (new, (*ring[1:], y))
        y, new = self.cell.step(x, state[0])
        return y, (*state[1:], new)

    def extra_repr(self) -> str:
        return f"d={self.d}, beside={self.beside}"


class Window(Cell):
    """y_t = [x_{t-k+1}; …; x_t]: the last k inputs side by side, zeros before the first. No parameters.

    Below a cell it is a causal convolution of width k, as in the QRNN (Bradbury 2017) and in time-delay networks
    (Waibel 1989). The state is the tuple of the last k − 1 inputs, the oldest first.

    >>> ys, (x,) = Window(1, 2)(torch.tensor([[[1.0], [2.0], [3.0]]]))
    >>> ys[0].tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]

    Args:
        size: features of x_t.
        k: width of the window in steps.
    """

    def __init__(self, size: int, k: int):
        super().__init__()
        self.k = check_size(self, "k", k)
        self.input_size = check_size(self, "size", size)
        self.output_size = k * size

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros (batch, size), k − 1 times."""
        return tuple(like.new_zeros(batch, self.input_size) for _ in range(self.k - 1))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The window moves on by one."""
        return torch.cat([*state, x], -1), (*state[1:], x) if self.k > 1 else ()

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """All steps at once: shifted copies of the inputs, without steps from before a reset."""
        batch, time = xs.shape[:2]
        back = self.k - 1
        live = zero_padding(xs, lengths)
        line = torch.cat([torch.stack(state, 1).to(xs.dtype), live], 1) if back else live
        # the index of the document of each step; zeros replace steps of another document
        starts = xs.new_zeros(batch, time, dtype=torch.bool) if resets is None else resets
        if lengths is not None:
            starts = starts & valid(lengths, time)
        document = torch.cat([starts.new_zeros(batch, back), starts], 1).cumsum(1)
        now = document[:, back:]
        parts = [
            torch.where((document[:, j : j + time] == now)[..., None], line[:, j : j + time], 0) for j in range(self.k)
        ]
        ys = zero_padding(torch.cat(parts, -1), lengths)
        ends = torch.full((batch,), time, device=xs.device) if lengths is None else lengths
        final = []
        for j in range(back):
            place = (ends + j)[:, None]
            same = document.gather(1, place) == document[:, -1:]
            last = line.gather(1, place[..., None].expand(-1, -1, self.input_size))
            final.append(torch.where(same[..., None], last, 0)[:, 0])
        return ys, tuple(final)

    def sublayers(self) -> Sequence[Layer]:
        """Nothing is scanned."""
        return ()

    def extra_repr(self) -> str:
        return f"{self.input_size}, k={self.k}"
