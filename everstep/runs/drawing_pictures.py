"""Passages and pictures of drawings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.move_batches import Moves, with_pens
from everstep.data.readers.drawings import Drawing, drawing_of
from everstep.errors import DataError
from everstep.look.passage import Passage
from everstep.look.pen_pictures import draw_grid, draw_next
from everstep.networks.move_decoder import made_drawings
from everstep.networks.move_model import MoveModel, begun, point_nats
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.drawing_data import Drawings, scaled_moves

SHOWN = 24
"""Drawings of each kind in the grid."""
DRAWN = 150
"""Points of the drawing whose densities are drawn, at most."""
ARROWS = "→↘↓↙←↖↑↗"
"""The eight directions, y downwards."""


def chosen_drawing(drawings: Drawings, text: str | None) -> Drawing:
    """The drawing in the first line of the user's text, or else the longest of the first ones of the last split.

    Raises:
        DataError: the text has no point.
    """
    if text is None:
        return max(drawings.of(drawings.splits()[-1])[:SHOWN], key=len)
    line = next((line for line in text.splitlines() if line.strip()), "")
    if not len(found := drawing_of(line, "the text")):
        raise DataError("the text: expected a drawing with a point; got none")
    return found


def move_passage(model: MoveModel, moves: Moves) -> Passage:
    """A scaled drawing as the model reads it; a move is counted as a character, shown by an arrow."""
    angles = np.arctan2(moves[:, 1], moves[:, 0])
    arrows = [ARROWS[int(sector) % 8] for sector in np.round(angles / (math.pi / 4))]
    stays = (moves[:, :2] == 0).all(1)
    labels = [("·" if still else arrow) + ("| " if lifted else "") for arrow, still, lifted in zip(
        arrows, stays, moves[:, 2] > 0, strict=True)]  # fmt: skip
    return Passage(
        body=model.body,
        inputs=begun(torch.from_numpy(with_pens(moves))[None])[0, :-1].to(model.device),
        labels=labels,
        places=list(range(len(moves))),
        unit="move",
        shown="move",
        surprise=lambda: (point_nats(model, moves) / math.log(2)).tolist(),
    )


@torch.inference_mode()
def next_density(model: MoveModel, moves: Moves, places: NDArray[Any]) -> NDArray[Any]:
    """Σ_t p(point t is there | points before it) of scaled places (n, 2), (n,)."""
    rows = torch.from_numpy(with_pens(moves))[None].to(model.device)
    mixtures = model(rows, torch.tensor([rows.shape[1]], device=model.device))[0, :-1]
    before = np.concatenate([np.zeros((1, 2)), moves[:-1, :2].cumsum(0)])
    total = torch.zeros(len(places), device=model.device)
    for found, start in zip(mixtures[1:], before[1:], strict=True):  # where a drawing begins is told by nothing
        there = torch.from_numpy(places - start).to(found)
        total += model.head.log_density(found.expand(len(there), -1), there).exp()
    return total.cpu().numpy()


def drawing_pictures(
    model: MoveModel, drawings: Drawings, scaling: NumberScaling, text: str | None, out: Path, temperature: float
) -> Iterator[tuple[Path, str]]:
    """A grid of held-out and of generated drawings; one by surprise, and with the density of each next point."""
    scale = scaling.scale[0]
    drawing = chosen_drawing(drawings, text)[:DRAWN]
    moves = scaled_moves(drawing, scaling, "the text")
    held_out = drawings.of(drawings.splits()[-1])[:SHOWN]
    most = 2 * max(map(len, held_out))
    made = made_drawings(model, SHOWN, most, temperature, seed=1)
    path = out / "drawings.png"
    yield path, draw_grid(held_out, [one * [scale, scale, 1] for one in made], path)
    if len(moves) == 1:
        return
    path = out / "next.png"
    bits = (point_nats(model, moves) / math.log(2)).tolist()
    yield path, draw_next(drawing, bits, lambda places: next_density(model, moves, places / scale), path)
