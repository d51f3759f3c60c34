"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.look.style import canvas, save

MOST = 30
"""Classes that one picture shows; of more, those with the most mistakes."""
WRITTEN = 15
"""Up to so many classes, each cell has its number."""


def draw_confusion(table: NDArray[np.int64], names: Sequence[str], path: Path) -> str:
    """Draw the counts of (class, prediction) pairs as shares of each class; returns what to see.

    Args:
        table: (K, K), at [i, j] how often class i was predicted as j.
        names: of the classes.
        path: the PNG to write.
    """
    mistakes = table.copy()
    np.fill_diagonal(mistakes, 0)
    chosen = np.sort(np.argsort(-(mistakes.sum(0) + mistakes.sum(1)), kind="stable")[:MOST])
    shown, labels = table[np.ix_(chosen, chosen)], [_short(names[place]) for place in chosen]
    totals = table.sum(1)[chosen][:, None]
    shares = np.divide(shown, totals, out=np.zeros(shown.shape), where=totals > 0)
    size = 5.0 + 0.3 * len(chosen)
    figure = canvas(size, size + 3.0)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for place, share in np.ndenumerate(shares) if len(chosen) <= WRITTEN else ():
        colour = "white" if share > 0.5 else "black"
        axes.text(place[1], place[0], f"{shown[place]:,}", ha="center", va="center", color=colour, fontsize=13)
    ticks = range(len(chosen))
    axes.set_xticks(ticks, labels, fontsize=12, rotation=45, ha="right")
    axes.set_yticks(ticks, labels, fontsize=12)
    axes.set_xlabel("predicted", fontsize=15)
    axes.set_ylabel("class", fontsize=15)
    figure.colorbar(image, ax=axes, label="share of the class's texts", fraction=0.046)
    save(figure, path)
    some = len(chosen) < len(names)
    part = f" Shown are the {len(chosen)} of {len(names):,} classes with most mistakes." if some else ""
    return f"{_worst(mistakes, table, names)}{part}"


def _worst(mistakes: NDArray[np.int64], table: NDArray[np.int64], names: Sequence[str]) -> str:
    if not mistakes.any():
        return f"All {table.sum():,} texts are classed right."
    of, taken = divmod(int(mistakes.argmax()), len(mistakes))
    count, total = int(mistakes[of, taken]), int(table[of].sum())
    right = table.trace() / table.sum()
    return (
        f"{right:.1%} of {table.sum():,} texts are on the diagonal, where they belong. The most frequent mistake: "
        f"{count:,} of {total:,} texts of class {names[of]} are taken for {names[taken]}."
    )


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
