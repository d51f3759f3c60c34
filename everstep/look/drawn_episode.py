"""An episode of an agent: what it saw, what was hidden from it, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.look.style import COLOURS, DASHES, canvas, label, legend, save

LONGEST = 200
"""Steps that are drawn."""


class DrawnEpisode(NamedTuple):
    """An episode of T actions.

    Attributes:
        seen, hidden: the numbers of the observations by name, (T + 1,) each.
        actions: (T,).
        chances: (T, actions), the probability of each action.
        expected: (T + 1,), the return that was expected from there on.
        total: the return.
    """

    seen: Mapping[str, NDArray[np.floating]]
    hidden: Mapping[str, NDArray[np.floating]]
    actions: NDArray[np.int64]
    chances: NDArray[np.floating]
    expected: NDArray[np.floating]
    total: float


def draw_episode(one: DrawnEpisode, path: Path) -> str:
    """Draw the first steps of an episode; returns the caption."""
    panels = [("seen", one.seen), *([("hidden", one.hidden)] if one.hidden else [])]
    figure = canvas(2.2 * (len(panels) + 2))
    grid = figure.subplots(len(panels) + 2, 1, sharex=True)
    shown = slice(0, LONGEST)
    for axes, (name, lines) in zip(grid, panels, strict=False):
        for place, (number, values) in enumerate(lines.items()):
            axes.plot(values[shown], color=COLOURS[place % 6], linestyle=DASHES[place % 6], label=number)
        label(axes, "", name)
        legend(axes, loc="upper right", ncols=6)
    probable = one.chances[np.arange(len(one.actions)), one.actions]
    axes = grid[-2]
    axes.scatter(np.arange(len(one.actions))[shown], one.actions[shown], c=probable[shown], cmap="viridis", s=14,
                 vmin=0, vmax=1)  # fmt: skip
    axes.set_yticks(range(one.chances.shape[1]))
    axes.set_ylim(-0.5, one.chances.shape[1] - 0.5)
    label(axes, "", "action")
    grid[-1].plot(one.expected[shown], color=COLOURS[0])
    label(grid[-1], "step", "expected\nreturn")
    figure.align_ylabels()
    save(figure, path)
    cut = f", of which the first {LONGEST} are drawn" if len(one.actions) > LONGEST else ""
    least = f"lightest where the policy was sure; the mean probability of what it did is {probable.mean():.0%}."
    return f"An episode of {len(one.actions)} steps{cut}, with a return of {one.total:g}. Actions are {least}"
