"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.errors import counted
from everstep.look.style import canvas, save
from everstep.measures import ClassMeasures

MOST = 30
"""Most classes in a picture; beyond that, those with the most mistakes are shown."""
WRITTEN = 15
"""Most classes for which cells show their numbers."""


def draw_confusion(measured: ClassMeasures, names: Sequence[str], path: Path, unit: str = "text") -> str:
    """Draw the counts of (class, prediction) pairs as shares of each class; returns the caption.

    Args:
        measured: predictions of K classes.
        names: the class names.
        path: the PNG to write.
        unit: the name of a classified item: "text", "word".
    """
    chosen = _chosen(measured)
    shown, totals = measured.confusion(chosen), measured.support[chosen][:, None]
    labels = [_short(names[place]) for place in chosen]
    shares = np.divide(shown, totals, out=np.zeros(shown.shape), where=totals > 0)
    size = 4.0 + 0.35 * len(chosen)
    figure = canvas(size, size + 1.5)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for place, share in np.ndenumerate(shares) if len(chosen) <= WRITTEN else ():
        colour = "white" if share > 0.5 else "black"
        axes.text(place[1], place[0], f"{shown[place]:,}", ha="center", va="center", color=colour, fontsize=13)
    ticks = range(len(chosen))
    turned = len(chosen) > 3 or max(map(len, labels)) > 10
    axes.set_xticks(ticks, labels, fontsize=12, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(ticks, labels, fontsize=12)
    axes.set_xlabel("predicted", fontsize=15)
    axes.set_ylabel("class", fontsize=15)
    figure.colorbar(image, ax=axes, label=f"share of the class's {unit}s", fraction=0.046)
    save(figure, path)
    some = len(chosen) < len(names)
    part = f" Shown are the {len(chosen)} of {len(names):,} classes with most mistakes." if some else ""
    return f"{_worst(measured, names, unit)}{part}"


def _mistakes(measured: ClassMeasures) -> NDArray[np.int64]:
    """The off-diagonal rows of `cells`, (M, 3)."""
    mistakes: NDArray[np.int64] = measured.cells[measured.cells[:, 0] != measured.cells[:, 1]]
    return mistakes


def _chosen(measured: ClassMeasures) -> NDArray[np.int64]:
    """The classes to show, in order: all, or those with the most mistakes."""
    of, taken, often = _mistakes(measured).T
    classes = len(measured.support)
    each = np.bincount(of, often, minlength=classes) + np.bincount(taken, often, minlength=classes)
    chosen: NDArray[np.int64] = np.sort(np.argsort(-each, kind="stable")[:MOST])
    return chosen


def _worst(measured: ClassMeasures, names: Sequence[str], unit: str) -> str:
    mistakes = _mistakes(measured)
    if not len(mistakes):
        return f"No mistake in {counted(measured.count, unit)}."
    of, taken, often = mistakes[mistakes[:, 2].argmax()]
    total = measured.support[of]
    return (
        f"{measured.accuracy:.1%} of {counted(measured.count, unit)} on the diagonal, where they belong. The most "
        f"frequent mistake: {often:,} of {counted(total, unit)} of class {names[of]} taken for {names[taken]}."
    )


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
