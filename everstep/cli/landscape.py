"""What `look` draws of the ground that a model stands on: its loss on a text along two random directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everstep.runs.run import Run

SIDE = 21  # places along each side of the picture
STEPS, FEWEST, STRETCH = 1024, 64, 64  # of the text at most and at least; so many are read in a row
CHARACTERS = 12_000
WORK = 5 * 10**11  # parameters × steps × places: about a quarter of a minute of one core


def draw_landscape(run: Run, out: Path, text: str | None = None) -> list[tuple[Path, str]]:
    """The loss around the model along a random plane, with its sentence; a large model reads less of the text.

    Raises:
        DataError: the text has fewer than two tokens.
    """
    from everstep.cli.pictures import foreseen, passage
    from everstep.learn.optim import trainable
    from everstep.look.surface import plane_picture
    from everstep.runs.progress_bar import progress_bar

    found = passage(run, text, CHARACTERS)
    if found is None or found.model_loss is None:
        return []
    weights = sum(parameter.numel() for parameter in trainable(run.model).values())
    affordable = WORK // (weights * SIDE**2)
    steps = len(foreseen(found, max(FEWEST, min(STEPS, affordable)))[0])
    rows = max(1, steps // STRETCH)
    time = steps // rows
    loss, path = found.model_loss, out / "loss-surface.png"
    with progress_bar("loss around the model") as progress:
        seen = plane_picture(
            run.model,
            lambda model: loss(model, rows, time),
            path,
            side=SIDE,
            unit=f"loss in {found.loss_unit} per {found.unit}",
            progress=progress,
        )
    return [(path, f"{seen} Measured on {rows * time:,} {found.unit}s.")]
