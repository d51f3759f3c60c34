"""What `look` draws of the ground that a language model stands on: its loss on a text along two random directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everstep.tasks.run import Run

SIDE = 21  # places along each side of the picture
TOKENS, FEWEST, STRETCH = 1024, 64, 64  # of the text at most and at least; so many are read in a row
CHARACTERS = 12_000
WORK = 5 * 10**11  # parameters × tokens × places: about a quarter of a minute of one core


def draw_landscape(run: Run, out: Path, text: Path | None = None) -> list[tuple[Path, str]]:
    """The loss around the model along a random plane, with its sentence; a large model reads less of the text.

    Raises:
        DataError: the text has fewer than two tokens.
    """
    from everstep.cli.pictures import NAMES, inputs_and_targets, target_loss
    from everstep.learn.optim import trainable
    from everstep.look.surface import plane_picture
    from everstep.tasks.texts import progress_bar

    weights = sum(parameter.numel() for parameter in trainable(run.model).values())
    affordable = WORK // (weights * SIDE**2)
    inputs, targets = inputs_and_targets(run, text, CHARACTERS, max(FEWEST, min(TOKENS, affordable)))
    rows = max(1, len(inputs) // STRETCH)
    time = len(inputs) // rows
    inputs, targets = (ids[: rows * time].view(rows, time) for ids in (inputs, targets))
    loss = target_loss(run.model)
    unit, path = NAMES[run.config.data.unit], out / "loss-surface.png"
    with progress_bar("loss around the model") as progress:
        seen = plane_picture(
            run.model,
            lambda model: loss(model(inputs)[0], targets).mean(),
            path,
            side=SIDE,
            unit=f"loss in nats per {unit}",
            progress=progress,
        )
    return [(path, f"{seen} Measured on {rows * time:,} {unit}s.")]
