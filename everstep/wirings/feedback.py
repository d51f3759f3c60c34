"""Output feedback: free running and teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everstep.cell import Cell, Layer, scan
from everstep.state import State
from everstep.wirings.time_distributed import check_cell


class Feedback(Cell):
    """A cell that also reads its previous output: y_t, s_t = cell([x_t; y_{t-1}], s_{t-1}), y_{-1} = 0.

    Output recurrence (Jordan 1986, "Attractor dynamics and parallelism in a connectionist sequential machine").
    Called or stepped, it runs free; `teacher_forced` feeds the true outputs instead (Williams & Zipser 1989). The
    read-out is part of the cell, whose output must be the final one. A cell without memory makes a Jordan network,
    h_t = φ(W x_t + U y_{t-1} + b), y_t = V h_t + c:

    >>> from everstep import FeedForward, GRU, Stack
    >>> jordan = Feedback(FeedForward(3 + 2, 8, 2, linear_output=True))
    >>> cell = Feedback(Stack(GRU(3 + 2, 8), FeedForward(8, 2, linear_output=True)))
    >>> xs, targets = torch.zeros(4, 7, 3), torch.zeros(4, 7, 2)
    >>> ys, state = cell.teacher_forced(xs, targets)
    >>> more, (inner, last) = cell(xs, state)

    The state is the cell's and y_{t-1}. If the cell has as many inputs as outputs, it reads nothing else, and xs is
    (batch, time, 0).

    Args:
        cell: the cell inside, whose inputs are those of x_t and then its own output.

    Known limits: free running goes step by step, even if the cell is a stack whose layers could run one by one; it does
    not support random masks inside (see `VariationalDropout`). Jordan's state units also kept a decaying sum of past
    outputs; a `LeakyRNN` inside the cell can do that.

    Raises:
        ValueError: a cell with fewer inputs than outputs.
        TypeError: an acausal layer.
    """

    def __init__(self, cell: Cell):
        check_cell("Feedback", cell)
        if cell.input_size < cell.output_size:
            raise ValueError(
                f"Feedback: the cell takes [x; y], but {type(cell).__name__} has input_size {cell.input_size} and "
                f"output_size {cell.output_size}"
            )
        super().__init__()
        self.cell = cell
        self.input_size, self.output_size = cell.input_size - cell.output_size, cell.output_size

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's, and zeros (batch, output_size) for the output before the first."""
        return self.cell.initial_state(batch, like), like.new_zeros(batch, self.output_size)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One free-running step. To force the previous output, put it in the state: `(state[0], target)`."""
        y, inner = self.cell.step(torch.cat([x, state[1]], -1), state[0])
        return y, (inner, y)

    def teacher_forced(self, xs: Tensor, targets: Tensor, state: State = None, **how: Any) -> tuple[Tensor, State]:
        """Run with the true outputs fed back, in one scan of the cell: y_t, s_t = cell([x_t; target_{t-1}], s_{t-1}).

        Args:
            xs: (batch, time, input_size).
            targets: (batch, time, output_size), the true output of each step. After a reset, as at the start, zeros
                are fed.
            state: the state to continue from.
            **how: lengths, resets and backend, as for `everstep.scan`.

        Returns:
            Outputs (batch, time, output_size), and the final state: the cell's and the last target. So running chunk
            by chunk equals one run, and calling the cell with that state continues in free running.

        Raises:
            TypeError, ValueError: as `everstep.scan`.
        """
        for name, value, size in (("xs", xs, self.input_size), ("targets", targets, self.output_size)):
            if not isinstance(value, Tensor) or value.shape != (*xs.shape[:2], size) or value.dim() != 3:
                came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"Feedback.teacher_forced: {name} should be (batch, time, {size}) as xs is, but got {came}"
                )
        return scan(_Taught(self), torch.cat([xs, targets], -1), state, **how)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.output_size}"


class _Taught(Layer):
    """The same cell and state over [x_t; target_t]."""

    def __init__(self, free: Feedback):
        super().__init__()
        self.free, self.cell = free, free.cell
        self.input_size, self.output_size = free.cell.input_size, free.cell.output_size

    def initial_state(self, batch: int, like: Tensor) -> State:
        return self.free.initial_state(batch, like)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        inner, last = state
        x, targets = xs.split([self.input_size - self.output_size, self.output_size], -1)
        line = torch.cat([last[:, None], targets], 1)  # position t + 1 holds target t
        before = line[:, :-1] if resets is None else torch.where(resets[..., None], 0, line[:, :-1])
        ys, inner = scan(self.cell, torch.cat([x, before], -1), inner, lengths=lengths, resets=resets, backend=backend)
        if lengths is None:
            return ys, (inner, line[:, -1])
        return ys, (inner, line[torch.arange(line.shape[0], device=line.device), lengths.long()])

    def sublayers(self) -> Sequence[Layer]:
        return (self.cell,)
