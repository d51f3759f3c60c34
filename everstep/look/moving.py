"""Tracks that move: an animation of true and predicted positions, and their paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray

from everstep.look.style import COLOURS, GREY, canvas, label, save

Floats = NDArray[np.float64]
TAIL = 8
"""Positions behind a moving point."""
_MILLISECONDS = 120


class DrawnTrack(NamedTuple):
    """A track in a plane: seen (W, 2), true (H, 2), and predicted (H, 2) by two sources."""

    seen: Floats
    came: Floats
    ours: Floats
    rule: Floats


def draw_paths(tracks: Sequence[DrawnTrack], names: tuple[str, str], rule: str, path: Path) -> str:
    """Draw tracks side by side; returns what to see.

    Args:
        tracks: 1 … 4 of them.
        names: of the two numbers of a position.
        rule: the name of the rule beside the model.
        path: the PNG to write.
    """
    figure = canvas(4.2)
    for axes, one in zip(figure.subplots(1, len(tracks), squeeze=False).flat, tracks, strict=True):
        _frame(axes, tracks)
        axes.plot(*one.seen.T, "o-", color=GREY, markersize=3, linewidth=1, label="seen")
        axes.plot(*_from(one, one.came), "o-", color="black", markersize=3, linewidth=1.2, label="true")
        axes.plot(*_from(one, one.ours), ".-", color=COLOURS[0], linewidth=2, label="this run")
        axes.plot(*_from(one, one.rule), ":", color=COLOURS[1], linewidth=2, label=rule)
        label(axes, *names)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=13, frameon=False)
    save(figure, path)
    return f"Grey: read; black: true positions; blue: predicted, running free; dotted {rule}."


def animate(tracks: Sequence[DrawnTrack], names: tuple[str, str], path: Path) -> str:
    """Write the tracks as an animation, a frame a step; returns what to see.

    Args:
        tracks: 1 … 4 of them.
        names: of the two numbers of a position.
        path: the GIF to write.
    """
    from PIL import Image

    seen, ahead = len(tracks[0].seen), len(tracks[0].came)
    frames = []
    for step in range(1, seen + ahead + 1):
        figure = canvas(3.6, 12.0 if len(tracks) > 2 else 7.0)
        drawing = FigureCanvasAgg(figure)
        for axes, one in zip(figure.subplots(1, len(tracks), squeeze=False).flat, tracks, strict=True):
            _frame(axes, tracks)
            _draw_point(axes, np.concatenate([one.seen, one.came])[:step], "black", 14)
            if step > seen:
                _draw_point(axes, np.concatenate([one.seen[-1:], one.ours])[: step - seen + 1], COLOURS[0], 9)
            title = f"read, step {step}" if step <= seen else f"predicted, {step - seen} ahead"
            axes.set_title(title, fontsize=12, loc="left")
            label(axes, *names)
        drawing.draw()
        picture = Image.fromarray(np.asarray(drawing.buffer_rgba())[..., :3])
        frames.append(picture.resize((picture.width // 2, picture.height // 2)).quantize(64))
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=_MILLISECONDS, loop=0, optimize=True)
    return f"Black: true positions; blue: predicted from the first {seen} steps alone, running free."


def _from(one: DrawnTrack, ahead: Floats) -> Floats:
    """The positions ahead, from the last one that was seen on: (2, H + 1)."""
    return np.concatenate([one.seen[-1:], ahead]).T


def _draw_point(axes: Axes, positions: Floats, colour: str, size: int) -> None:
    axes.plot(*positions[-TAIL:].T, color=colour, linewidth=1.2, alpha=0.5)
    axes.plot(*positions[-1:].T, "o", color=colour, markersize=size, alpha=0.8)


def _frame(axes: Axes, tracks: Sequence[DrawnTrack]) -> None:
    every = np.concatenate([part for one in tracks for part in (one.seen, one.came, one.ours)])
    low, high = every.min(0), every.max(0)
    edge = 0.06 * np.where(high > low, high - low, 1.0)
    axes.set_xlim(low[0] - edge[0], high[0] + edge[0])
    axes.set_ylim(low[1] - edge[1], high[1] + edge[1])
