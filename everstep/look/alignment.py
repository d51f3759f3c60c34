"""What a decoder with attention looks at while it writes, as maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.look.style import GREY, canvas, save

LONGEST = 30
"""Tokens of a side that are drawn."""


class Alignment(NamedTuple):
    """One sequence and what was written of it.

    Attributes:
        source, target: the text of each token.
        weights: (target, source), what is read at each step; each row sums to 1 or is 0.
    """

    source: Sequence[str]
    target: Sequence[str]
    weights: NDArray[np.float64]

    @property
    def forward(self) -> float:
        """Share of steps whose most read place is not before that of the step before."""
        places = self.weights.argmax(1)
        return float((np.diff(places) >= 0).mean()) if len(places) > 1 else 1.0


def draw_alignments(found: Sequence[Alignment], path: Path) -> str:
    """Maps side by side, two a row; in each a row is a token written, a column a token read.

    Returns:
        A sentence that says what to see.
    """
    found = [_cut(one) for one in found]
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    tall = [max(len(one.target) for one in found[line * columns : (line + 1) * columns]) for line in range(lines)]
    figure = canvas(height=sum(max(3.2, 1.6 + 0.26 * rows) for rows in tall))
    grid = figure.subplots(lines, columns, squeeze=False, height_ratios=[max(3.2, 1.6 + 0.26 * r) for r in tall])
    for axes in grid.flat[len(found) :]:
        axes.axis("off")
    for axes, one in zip(grid.flat, found, strict=False):
        axes.imshow(one.weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(one.source)), one.source, rotation=90, fontsize=11)
        axes.set_yticks(range(len(one.target)), one.target, fontsize=11)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(one.source) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(one.target) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=GREY, alpha=0.15)
        axes.tick_params(which="minor", length=0)
    save(figure, path)
    steps = np.concatenate([one.weights.max(1) for one in found])
    ahead = np.mean([one.forward for one in found])
    return (
        "Attention weights: rows are output tokens, columns source tokens; darker is larger. The largest weight of a "
        f"step is {steps.mean():.0%} on average; in {ahead:.0%} of the steps it moves right or stays."
    )


def _cut(one: Alignment) -> Alignment:
    weights = one.weights[:LONGEST, :LONGEST]
    return Alignment(list(one.source)[:LONGEST], list(one.target)[:LONGEST], weights)
