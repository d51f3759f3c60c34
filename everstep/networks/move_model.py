"""p(move_t | moves before it): a stack of cells over the moves of a pen, and a mixture of Gaussians of the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.data.move_batches import MoveBatch, MoveBatches, Moves, with_pens
from everstep.heads.pen_mixture import PenMixture
from everstep.learn.objective import Loss
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import LayersSection, initialise, layer_problems, stack_of
from everstep.sections import Count, Positive
from everstep.state import State, valid

FEATURES = 5
"""Δx, Δy, and one of draw, lift, end."""
START = (0.0, 0.0, 0.0, 1.0, 0.0)
"""What is read before the first move: a pen that is lifted."""


class MoveSection(LayersSection):
    """The network: a stack of cells that reads moves, and the distribution of the next one."""

    components: Count = 20
    """Gaussians of the mixture, K"""
    least_deviation: Positive = 0.01
    """smallest deviation of a Gaussian, in deviations of all training moves; losses are comparable if it is equal"""

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, FEATURES, find)


class MoveModel(nn.Module):
    """Reads moves x_t = (Δx, Δy, draw, lift, end), scaled, and gives p(x_t | x_<t), with x_0 = `START`.

    Args:
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
    """

    def __init__(self, section: MoveSection, find: Find = no_code):
        super().__init__()
        self.head = PenMixture(section.components, section.least_deviation)
        self.body = stack_of(section, FEATURES, find)
        self.out = nn.Linear(self.body.output_size, self.head.size)
        initialise(section, self)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def forward(self, moves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The distributions (B, T, 6 K + 3), as `PenMixture.predict` gives them, of each of the moves (B, T, 5)."""
        ys, _ = self.body(begun(moves), lengths=lengths)
        return self.head.predict(self.out(ys))

    def nats(self, moves: Tensor, lengths: Tensor) -> Tensor:
        """−log p of each move and of each pen, given the moves before them, (B, T, 2), 0 in the padding."""
        each = torch.stack(self.head.nats(self(moves, lengths), moves), -1)
        return torch.where(valid(lengths, moves.shape[1])[..., None], each, 0)

    def initial_state(self, batch: int) -> State:
        """The state before a drawing begins."""
        return self.body.initial_state(batch, torch.zeros((), device=self.device))

    @property
    def cell(self) -> NextMove:
        """The same model, a move a step."""
        return NextMove(self.body, self.out, self.head)

    def step(self, moves: Tensor, state: State) -> tuple[Tensor, State]:
        """The distributions of the next moves (batch, 6 K + 3) after moves (batch, 5), and the new state."""
        return self.cell.step(moves, state)


class NextMove(Cell):
    """Reads moves (batch, 5), and gives the distribution of the next, (batch, 6 K + 3).

    Args:
        body: cells over moves.
        out: their outputs to what `head` reads.
        head: the distribution.
    """

    def __init__(self, body: Cell, out: nn.Linear, head: PenMixture):
        super().__init__(body.input_size, head.size)
        self.body, self.out, self.head = body, out, head

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The body's."""
        return self.body.initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.body.step(x, state)
        return self.head.predict(self.out(y)), state


def begun(moves: Tensor) -> Tensor:
    """What is read before each of the moves (B, T, 5): `START`, and the moves but the last."""
    start = torch.tensor(START, dtype=moves.dtype, device=moves.device)
    return torch.cat([start.expand(len(moves), 1, FEATURES), moves[:, :-1]], 1)


def move_losses(model: MoveModel, batch: MoveBatch) -> Iterator[Loss]:
    """One `Loss` per batch: −Σ_t log p(x_t | x_<t), the end included."""
    nats = model.nats(batch.moves, batch.lengths).sum((1, 2))
    yield Loss(nats, nats.detach())


@torch.inference_mode()
def move_figures(model: MoveModel, batches: MoveBatches, progress: Callable[[int, int], None]) -> dict[str, float]:
    """Nats of a point ("loss"), of its "move" and "pen" apart, and of a drawing, in one pass; ends are counted."""
    model.eval()
    total, points, drawings = np.zeros(2), 0, 0
    for index in range(len(batches)):
        batch = batches.batch(0, index).to(model.device)
        total += model.nats(batch.moves, batch.lengths).cpu().double().sum((0, 1)).numpy()
        points, drawings = points + batch.count, drawings + batch.rows
        progress(index + 1, len(batches))
    move, pen = (total / points).tolist()
    loss = move + pen
    return {
        "points": points,
        "drawings": drawings,
        "loss": loss,
        "nats_per_drawing": loss * points / drawings,
        "move": move,
        "pen": pen,
    }


@torch.inference_mode()
def point_nats(model: MoveModel, moves: Moves) -> NDArray[np.float64]:
    """−log p of each point of a scaled drawing (T, 3), (T,); that of its end belongs to the last point."""
    rows = torch.from_numpy(with_pens(moves))[None].to(model.device)
    found = model.nats(rows, torch.tensor([rows.shape[1]], device=model.device))[0].sum(-1).double().cpu().numpy()
    if len(found) > 1:
        found[-2] += found[-1]
        found = found[:-1]
    return found
