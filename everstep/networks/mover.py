"""Positions to future positions: cells that read a position and give the next, running free over the horizon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer, scan
from everstep.data.track_windows import TrackBatch
from everstep.learn.objective import Loss
from everstep.networks.cells_by_name import CellChoice, Find, no_code
from everstep.networks.layers import LayersSection, initialise, layer_problems, stack_of
from everstep.sections import NonNegative, Size
from everstep.state import State, valid
from everstep.wirings import Feedback


class MoverSection(LayersSection):
    """The network: cells that move a position on, step by step."""

    cell: CellChoice = "GRU"
    """any exported cell, {type: NAME, option: value}, a list (the tree of an ExpressionCell), or FILE.py:NAME"""
    hidden_size: Size | tuple[Size, ...] = 64
    """units of each layer; a list: one size per layer"""
    window: Size = 10
    """steps that are read before the first that is predicted"""
    horizon: Size = 20
    """steps that are predicted"""
    taught: NonNegative = 1.0
    """weight of the loss of single steps within the window, beside that of the horizon"""

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, 2, find)

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the layers, dropouts, and a window in which nothing moves."""
        yield from super().disagreements()
        for name in ("dropout", "input_dropout", "weight_drop", "state_dropout", "zoneout"):
            if value := getattr(self, name):
                yield name, f"expected 0, since cells that run free draw no masks; got {value:g}"
        if self.window < 2:
            yield "window", f"expected 2 or more, since one position has no velocity; got {self.window}"


class Moved(Cell):
    """y_t = x_t + W h_t + b, with h_t the output of a cell that reads x_t.

    Args:
        cell: reads positions (batch, D).
    """

    def __init__(self, cell: Cell):
        super().__init__(cell.input_size, cell.input_size)
        self.cell = cell
        self.out = nn.Linear(cell.output_size, cell.input_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The cell's."""
        return self.cell.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: the next position from this one."""
        h, state = self.cell.step(x, state)
        return x + self.out(h), state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The cell over the sequence, then all positions at once."""
        hs, state = scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        ys = xs + self.out(hs)
        if lengths is not None:
            ys = ys * valid(lengths, ys.shape[1])[..., None]
        return ys, state

    def sublayers(self) -> Sequence[Layer]:
        return (self.cell,)


class Mover(nn.Module):
    """Reads positions x_1 … x_W, then runs free: x̂_{t+1} = x̂_t + W h_t + b, each position read as the next input.

    Args:
        size: numbers of a position, D.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
    """

    def __init__(self, size: int, section: MoverSection, find: Find = no_code):
        super().__init__()
        self.taught, self.horizon = section.taught, section.horizon
        self.body = Feedback(Moved(stack_of(section, size, find)))
        initialise(section, self)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def forward(self, seen: Tensor, horizon: int | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions (B, W, D) to those of single steps, (B, W, D), and to those ahead, (B, horizon, D).

        Single step t is predicted from the true positions before it; the first of them from nothing.
        """
        # the cell at step t reads position t - 1; the state then holds the last position for the first free step
        told, state = self.body.teacher_forced(seen[..., :0], seen, lengths=lengths)
        many = self.horizon if horizon is None else horizon
        ahead, _ = self.body(seen.new_zeros(seen.shape[0], many, 0), state)
        return told, ahead

    def losses(self, batch: TrackBatch) -> tuple[Tensor, Tensor]:
        """Squared errors summed over steps, (B,): what is minimised, and that of the horizon alone."""
        told, ahead = self(batch.seen, batch.ahead.shape[1])
        free = (ahead - batch.ahead).square().mean(2).sum(1)
        single = (told[:, 2:] - batch.seen[:, 2:]).square().mean(2).sum(1)
        return free + self.taught * single, free.detach()


def track_losses(model: Mover, batch: TrackBatch) -> Iterator[Loss]:
    """One `Loss` per batch."""
    yield Loss(*model.losses(batch))
