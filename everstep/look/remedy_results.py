"""The lags that each remedy solves, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.colors import LogNorm

from everstep.errors import counted
from everstep.look.style import SHADES, canvas, save

_LOWEST, _DARK = 0.02, 0.25  # of the colours; above _DARK the field is dark
SOLVED = "✓"


@dataclass(frozen=True)
class Reach:
    """The result of one remedy at one lag.

    Attributes:
        relative: loss on held-out sequences ÷ loss of ignoring the input; the median over seeds.
        solved, diverged, tried: numbers of trials.
        rate: the chosen learning rate.
    """

    relative: float
    solved: int
    diverged: int
    tried: int
    rate: float

    @property
    def told(self) -> str:
        """The relative loss, with a tick if all trials solved the task, or the number that did."""
        shown = "diverged" if not math.isfinite(self.relative) else f"{min(self.relative, 9.99):.2g}"
        if 0.1 <= self.relative < math.inf:
            shown = f"{min(self.relative, 9.99):.2f}"
        if self.solved == 0:
            return shown
        return f"{shown} {SOLVED}" if self.solved == self.tried else f"{shown} {SOLVED}{self.solved}/{self.tried}"


@dataclass(frozen=True)
class Grid:
    """Remedies × lags.

    Attributes:
        task: the name of the task.
        goal: the criterion for solved, as text.
        remedies: descriptions by name, in the order of the rows.
        lags: the lags, in the order of the columns.
        reaches: results by (remedy, lag).
    """

    task: str
    goal: str
    remedies: Mapping[str, str]
    lags: tuple[int, ...]
    reaches: Mapping[tuple[str, int], Reach]


def remedy_table(grid: Grid) -> str:
    """The grid as a Markdown table of relative losses, ticked if solved.

    >>> reaches = {("LSTM", 20): Reach(0.03, 1, 0, 1, 1e-3), ("LSTM", 100): Reach(0.97, 0, 0, 1, 1e-3)}
    >>> print(remedy_table(Grid("adding", "squared error below 0.01", {"LSTM": "gates"}, (20, 100), reaches)))
    | remedy | lag 20 | lag 100 | what it is |
    |---|---|---|---|
    | LSTM | 0.03 ✓ | 0.97 | gates |
    """
    head = ["remedy", *(f"lag {lag}" for lag in grid.lags), "what it is"]
    rows = [head, ["---"] * len(head)]
    rows += [
        [name, *(grid.reaches[name, lag].told for lag in grid.lags), grid.remedies[name]] for name in grid.remedies
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines[1] = "|" + "|".join(rows[1]) + "|"
    return "\n".join(lines)


def remedy_words(grid: Grid) -> str:
    """The caption of the grid: the remedies that solved the longest lag solved by any."""
    solved = [(lag, name) for (name, lag), reach in grid.reaches.items() if reach.solved]
    words = "Dark and ticked: it remembers. Bright: no better than an answer that looks at nothing."
    if not solved:
        return f"{words} No remedy has solved it at any lag."
    longest = max(lag for lag, _ in solved)
    names = [name for name in grid.remedies if (longest, name) in solved]
    diverged = sum(reach.diverged for reach in grid.reaches.values())
    lost = f" {counted(diverged, 'trial')} diverged." if diverged else ""
    return f"{words} The longest lag that is solved is {longest} of {grid.lags[-1]}, by {', '.join(names)}.{lost}"


def draw_remedies(grid: Grid, path: Path) -> None:
    """Draw the grid: bright where a remedy is no better than ignoring the input, dark where it is; ticked if solved.

    Args:
        grid: the results.
        path: the PNG to write; its folder is created.
    """
    names = list(grid.remedies)
    values = [[min(max(grid.reaches[name, lag].relative, _LOWEST), 1.0) for lag in grid.lags] for name in names]
    figure = canvas(max(5.0, 1.8 + 0.42 * len(names)))
    axes = figure.subplots()
    image = axes.imshow(values, norm=LogNorm(_LOWEST, 1), cmap=SHADES, aspect="auto")
    for row, name in enumerate(names):
        for column, lag in enumerate(grid.lags):
            reach = grid.reaches[name, lag]
            axes.text(
                column,
                row,
                reach.told,
                ha="center",
                va="center",
                fontsize=12,
                color="white" if values[row][column] < _DARK else "black",
                fontweight="bold" if reach.solved else "normal",
            )
    axes.set_xticks(range(len(grid.lags)), [str(lag) for lag in grid.lags], fontsize=13)
    axes.set_yticks(range(len(names)), names, fontsize=13)
    axes.set_xticks([k - 0.5 for k in range(1, len(grid.lags))], minor=True)
    axes.set_yticks([k - 0.5 for k in range(1, len(names))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("lag (steps)", fontsize=14)
    axes.set_title(f"{grid.task}: {SOLVED} solved ({grid.goal})", fontsize=15, loc="left")
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    bar.set_ticks([0.02, 0.05, 0.1, 0.2, 0.5, 1.0], labels=["≤ 0.02", "0.05", "0.1", "0.2", "0.5", "≥ 1"])
    bar.ax.minorticks_off()
    bar.set_label("held-out loss ÷ loss of ignoring the input", fontsize=13)
    bar.ax.tick_params(labelsize=12)
    bar.outline.set_visible(False)
    save(figure, path)
