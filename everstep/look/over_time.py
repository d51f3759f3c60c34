"""Sequences of numbers or frames, and what a classifier says after each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from everstep.look.style import COLOURS, DASHES, GREY, canvas, label, save

MOST_LINES = 6
"""Most columns that are drawn."""
MOST_FRAMES = 8
"""Most frames of a clip that are drawn."""
MOST_CLASSES = 3
"""Most classes whose probability is drawn."""


class DrawnSequence(NamedTuple):
    """One sequence.

    Attributes:
        title: its class and the prediction.
        right: its class; "" if unknown.
        columns: the names of the numbers of a step; empty for frames.
        steps: (T, D) numbers in units of the data, NaN where one is missing; or (T, height, width, channels).
        read: (P,) numbers of steps read.
        said: for each class that is drawn, its probability after so many steps, (P,).
        attention: (T,) the weight of each step in the read-out; None without attention.
    """

    title: str
    right: str
    columns: tuple[str, ...]
    steps: NDArray[Any]
    read: NDArray[np.int64]
    said: dict[str, NDArray[np.float64]]
    attention: NDArray[np.float64] | None


def draw_over_time(shown: Sequence[DrawnSequence], path: Path) -> str:
    """Draw sequences, two in a row, with the probabilities of their classes below; returns what to see.

    Args:
        shown: 1 or more.
        path: the PNG to write.
    """
    rows = -(-len(shown) // 2)
    figure = canvas((3.6 if shown[0].steps.ndim == 4 else 4.6) * rows)
    grid = figure.subplots(
        2 * rows, min(2, len(shown)), squeeze=False, height_ratios=[0.6 if shown[0].steps.ndim == 4 else 1.3, 1] * rows
    )
    for place, one in enumerate(shown):
        row, column = divmod(place, 2)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        _draw_frames(above, one) if one.steps.ndim == 4 else _draw_lines(above, one)
        above.set_title(one.title, fontsize=13, loc="left")
        _draw_said(below, one)
    if len(shown) % 2 and len(shown) > 1:
        grid[-2, -1].set_axis_off()
        grid[-1, -1].set_axis_off()
    save(figure, path)
    weights = " The bars at the foot are the weights that the read-out gives to the steps." if _attended(shown) else ""
    dots = " A gap in a line is a missing number." if any(np.isnan(one.steps).any() for one in shown) else ""
    return (
        "Above what is read, below the probability of the likeliest classes after so many steps; the class that is "
        f"right is drawn thick.{weights}{dots}"
    )


def _attended(shown: Sequence[DrawnSequence]) -> bool:
    return any(one.attention is not None for one in shown)


def _draw_lines(axes: Axes, one: DrawnSequence) -> None:
    steps = np.arange(1, len(one.steps) + 1)
    for place in range(min(one.steps.shape[1], MOST_LINES)):
        style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
        axes.plot(steps, one.steps[:, place], linewidth=1.8, marker="." if len(steps) < 60 else "", **style)
        known = np.flatnonzero(~np.isnan(one.steps[:, place]))
        if len(known) and one.steps.shape[1] > 1:
            last = known[-1]
            axes.annotate(one.columns[place], (steps[last], one.steps[last, place]), xytext=(5, 0),
                          textcoords="offset points", fontsize=12, va="center", color=style["color"])  # fmt: skip
    _draw_attention(axes, one)
    label(axes, "", "")


def _draw_frames(axes: Axes, one: DrawnSequence) -> None:
    """Some frames side by side, at the places of their steps."""
    chosen = np.unique(np.linspace(0, len(one.steps) - 1, MOST_FRAMES).round().astype(int))
    frames = one.steps[chosen].astype(float)
    low, high = np.nanmin(frames), np.nanmax(frames)
    frames = (frames - low) / (high - low if high > low else 1)
    edged = np.pad(frames, [(0, 0), (0, 0), (1, 1), (0, 0)], constant_values=0.5)
    strip = np.concatenate(list(edged), axis=1)
    picture = strip if strip.shape[2] == 3 else strip[..., 0]
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="equal")
    width = edged.shape[2]
    axes.set_xticks(width * (np.arange(len(chosen)) + 0.5), [str(place + 1) for place in chosen], fontsize=12)
    axes.set_yticks([])


def _draw_attention(axes: Axes, one: DrawnSequence) -> None:
    if one.attention is None:
        return
    beside = axes.twinx()
    beside.bar(np.arange(1, len(one.attention) + 1), one.attention, width=0.8, color=GREY, alpha=0.35)
    beside.set_ylim(0, 3.5 * max(float(one.attention.max()), 1e-9))
    beside.set_yticks([])
    beside.spines[["top", "right"]].set_visible(False)


def _draw_said(axes: Axes, one: DrawnSequence) -> None:
    for place, (name, values) in enumerate(one.said.items()):
        thick = name == one.right
        axes.plot(one.read, values, color=COLOURS[place % len(COLOURS)], linestyle=DASHES[place % len(DASHES)],
                  linewidth=3.0 if thick else 1.5, label=name, marker="." if len(one.read) < 30 else "")  # fmt: skip
    if one.steps.ndim == 4:
        axes.set_xlim(0.5, len(one.steps) + 0.5)
    axes.set_ylim(-0.03, 1.03)
    label(axes, "steps read", "p(class)")
    axes.legend(fontsize=11, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
