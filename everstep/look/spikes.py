"""What a recogniser hears and says over time: log-mel bands above, the probabilities of labels below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.look.style import COLOURS, DASHES, GREY, SHADES, canvas, label, legend, save

LEAST = 0.2
"""A label that is never likelier is not drawn."""
SPACE = "␣"


class DrawnRecording(NamedTuple):
    """A recording as it is drawn.

    Attributes:
        frames: (T, B) ln of energies, a frame each `frame_seconds`.
        frame_seconds, step_seconds: from a frame, and from a step, to the next.
        p: (S, K + 1) the probability of each label, and of the blank, at each step.
        symbols: the K labels.
        said: what was said; "" if unknown.
        found: what the model wrote.
        times: the label and the middle of each label in seconds.
    """

    frames: NDArray[Any]
    frame_seconds: float
    step_seconds: float
    p: NDArray[Any]
    symbols: Sequence[str]
    said: str
    found: str
    times: Sequence[tuple[str, float]]


def draw_spikes(drawn: DrawnRecording, path: Path) -> str:
    """Draw a recording, and p of each label over time; returns what to see.

    Args:
        drawn: the recording.
        path: the PNG to write.
    """
    figure = canvas(7.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    ends = len(drawn.frames) * drawn.frame_seconds
    above.imshow(
        drawn.frames.T, origin="lower", aspect="auto", cmap=SHADES, extent=(0, ends, 0, drawn.frames.shape[1]),
        interpolation="nearest",
    )  # fmt: skip
    label(above, "", "mel band")
    above.grid(False)
    above.set_title(f"said: {drawn.said}" if drawn.said else "a recording", fontsize=14, loc="left")
    at = (np.arange(len(drawn.p)) + 0.5) * drawn.step_seconds
    below.plot(at, drawn.p[:, -1], color=GREY, linestyle=":", linewidth=1.5, label="blank")
    likely = [k for k in range(len(drawn.symbols)) if drawn.p[:, k].max(initial=0) >= LEAST]
    for place, k in enumerate(likely):
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}
        below.plot(at, drawn.p[:, k], linewidth=2, **style)
    for symbol, middle in drawn.times:
        below.annotate(symbol.replace(" ", SPACE), (middle, 1.03), ha="center", fontsize=13, annotation_clip=False)
    below.set_ylim(0, 1.15)
    below.set_xlim(0, max(ends, float(at[-1]) if len(at) else ends))
    label(below, "seconds", "p(label)")
    legend(below, loc="lower right", bbox_to_anchor=(1, 1.02))
    below.set_title(f"written: {drawn.found or '(nothing)'}", fontsize=14, loc="left", pad=18)
    save(figure, path)
    return (
        "Above: the energy of mel bands. Below: the probability of each label at each step, named where it is written; "
        "dotted: the blank. Labels come as spikes, and blanks between them."
    )
