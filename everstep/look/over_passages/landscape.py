"""The loss landscape around a model: its loss on a passage along two random directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from everstep.look.over_passages import Bar
    from everstep.look.passage import Passage

CHARACTERS = 12_000
SIDE = 21  # points along each side of the picture
STEPS, FEWEST, STRETCH = 1024, 64, 64  # most and fewest steps of the text; length of a row
WORK = 5 * 10**11  # most parameters × steps × points: about 15 seconds on one core


def draw(found: Passage, out: Path, model: nn.Module, bar: Bar) -> list[tuple[Path, str]]:
    """Draw the loss around the model in a random plane, with a caption; a large model reads less of the text.

    Raises:
        DataError: the text has fewer than two tokens.
    """
    from everstep.learn.optim import trainable
    from everstep.look.surface import plane_picture

    if found.model_loss is None:
        return []
    weights = sum(parameter.numel() for parameter in trainable(model).values())
    affordable = WORK // (weights * SIDE**2)
    steps = len(found.foreseen(max(FEWEST, min(STEPS, affordable)))[0])
    rows = max(1, steps // STRETCH)
    time = steps // rows
    loss, path = found.model_loss, out / "loss-surface.png"
    with bar("loss around the model") as progress:
        seen = plane_picture(
            model,
            lambda moved: loss(moved, rows, time),
            path,
            side=SIDE,
            unit=f"loss in {found.loss_unit} per {found.unit}",
            progress=progress,
        )
    return [(path, f"{seen} Measured on {rows * time:,} {found.unit}s.")]
