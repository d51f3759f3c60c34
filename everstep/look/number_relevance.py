"""Sequences of numbers, coloured by what each number adds to the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from everstep.look.style import DASHES, GREY, canvas, label, save

MOST_LINES = 6
"""Most columns that are drawn as lines; more are a map."""
COLOURS = colormaps["RdBu"]


class RelevantSequence(NamedTuple):
    """One sequence.

    Attributes:
        title: its class and the prediction.
        columns: the names of the D numbers of a step.
        steps: (T, D) numbers in units of the data, NaN where one is missing; None: frames, which are drawn as a map.
        relevance: (T, D) what each number adds to the lead of the prediction.
    """

    title: str
    columns: tuple[str, ...]
    steps: NDArray[np.float64] | None
    relevance: NDArray[np.float64]


def draw_number_relevance(shown: Sequence[RelevantSequence], path: Path) -> None:
    """Draw sequences below one another, each with a colour scale of its own: blue supports the answer, red opposes it.

    Args:
        shown: 1 or more.
        path: the PNG to write.
    """
    figure = canvas(2.6 * len(shown) + 0.6)
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, one in zip(grid, shown, strict=True):
        label(axes, "step" if one is shown[-1] else "", "")
        most = float(np.abs(one.relevance).max(initial=0.0)) or 1.0
        if one.steps is None or one.steps.shape[1] > MOST_LINES:
            found = _draw_map(axes, one, most)
        else:
            found = _draw_dots(axes, one, one.steps, most)
        bar = figure.colorbar(found, ax=axes, pad=0.02)
        bar.set_label("nats", fontsize=11)
        bar.ax.tick_params(labelsize=10)
        axes.set_title(one.title, fontsize=13, loc="left")
        axes.set_xlim(0.5, len(one.relevance) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    save(figure, path)


def _draw_dots(axes: Axes, one: RelevantSequence, steps: NDArray[np.float64], most: float) -> Any:
    """The numbers as lines, with a dot at each."""
    at = np.arange(1, len(steps) + 1)
    found: Any = None
    for place, name in enumerate(one.columns):
        values, relevance = steps[:, place], one.relevance[:, place]
        axes.plot(at, values, color=GREY, linewidth=1.0, linestyle=DASHES[place % len(DASHES)], zorder=1)
        found = axes.scatter(
            at, values, c=relevance, s=20 + 80 * np.abs(relevance) / most, cmap=COLOURS, vmin=-most, vmax=most,
            edgecolors=GREY, linewidths=0.4, zorder=2,
        )  # fmt: skip
        known = np.flatnonzero(~np.isnan(values))
        if len(known) and len(one.columns) > 1:
            axes.annotate(name, (at[known[-1]], values[known[-1]]), xytext=(8, 0), textcoords="offset points",
                          fontsize=12, va="center")  # fmt: skip
    return found


def _draw_map(axes: Axes, one: RelevantSequence, most: float) -> Any:
    """A cell for each number: columns downwards, steps to the right."""
    axes.grid(visible=False)
    wide = (0.5, len(one.relevance) + 0.5, len(one.columns) - 0.5, -0.5)
    found = axes.imshow(
        one.relevance.T, aspect="auto", cmap=COLOURS, vmin=-most, vmax=most, extent=wide, interpolation="nearest"
    )
    if len(one.columns) <= 3 * MOST_LINES:
        axes.set_yticks(range(len(one.columns)), one.columns, fontsize=11)
    return found
