"""The errors of several models by the origin of their forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.errors import counted
from everstep.look.style import COLOURS, DASHES, canvas, label, legend, save


def _days(origins: Sequence[str]) -> list[str]:
    """The names without the time of day where it is midnight in all."""
    ends = (" 00:00:00", " 00:00:00+00:00")
    end = next((end for end in ends if all(name.endswith(end) for name in origins)), "")
    return [name.removesuffix(end) for name in origins]


def draw_backtest(origins: Sequence[str], errors: Mapping[str, NDArray[np.float64]], measure: str, path: Path) -> str:
    """Draw one line per model over the origins, the first model in front; returns the caption.

    Args:
        origins: the names of the O origins, oldest first.
        errors: (O,) of each model by name.
        measure: what the errors are, for the axis.
        path: the PNG to write.
    """
    figure = canvas(5.5)
    axes = figure.subplots()
    places = np.arange(len(origins))
    for place, (name, values) in reversed(list(enumerate(errors.items()))):
        axes.plot(
            places,
            values,
            color=COLOURS[place % len(COLOURS)],
            linestyle=DASHES[place % len(DASHES)],
            linewidth=1.5 + 1.5 * (not place),
            marker="o",
            markersize=5,
            label=name,
        )
    every = -(-len(origins) // 8)
    axes.set_xticks(places[::every], _days(origins)[::every], rotation=20, ha="right")
    axes.set_ylim(bottom=0)
    label(axes, "first step ahead", measure)
    handles, names = axes.get_legend_handles_labels()
    legend(axes, handles=handles[::-1], labels=names[::-1], ncols=2)
    save(figure, path)
    (_, ours), *others = errors.items()
    better = {name: int((values < ours).sum()) for name, values in others}
    best = min(others, key=lambda other: float(np.nanmean(other[1])), default=("", ours))
    beside = f"; the best of the others, {best[0]}, {np.nanmean(best[1]):.4g}" if others else ""
    most = max(better, key=lambda name: (better[name], -np.nanmean(errors[name])), default="")
    told = (
        f"{most} is better at {better[most]} of them" if better.get(most) else "No other model is better at any of them"
    )
    return (
        f"{measure} of the forecasts from {counted(len(origins), 'origin')}: {np.nanmean(ours):.4g} on average"
        f"{beside}. {told[0].upper()}{told[1:]}."
    )
