"""Forecasts beside actual values, errors by step ahead, and the calibration of quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from everstep.look.style import COLOURS, DASHES, GREY, canvas, label, legend, save, whole

Floats = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]


class DrawnWindow(NamedTuple):
    """One window.

    Attributes:
        name: of its series.
        begins: the time at which the horizon begins, as text.
        history: (T,) what came before.
        target: (H,) the actual values; NaN where it is not known.
        mean: (H,).
        quantiles: (H, Q) at `levels`; None: a point alone.
    """

    name: str
    begins: str
    history: Floats
    target: Floats
    mean: Floats
    quantiles: Reals | None


def draw_forecasts(windows: Sequence[DrawnWindow], levels: Sequence[float], path: Path) -> str:
    """Draw windows with their bands, two in a row; returns what to see.

    Args:
        windows: 1 … 6 of them.
        levels: of the quantiles, the same number below as above ½.
        path: the PNG to write.
    """
    rows = -(-len(windows) // 2)
    figure = canvas(1.2 + 3.2 * rows)
    grid = figure.subplots(rows, min(2, len(windows)), squeeze=False)
    for axes, window in zip(grid.flat, windows, strict=False):
        _draw_window(axes, window, levels)
    for axes in list(grid.flat)[len(windows) :]:
        axes.set_axis_off()
    for axes in list(grid.flat)[max(0, len(windows) - 2) : len(windows)]:
        label(axes, "steps from the origin", "")
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=13, frameon=False)
    save(figure, path)
    bands = (
        "" if windows[0].quantiles is None else " The darker band should contain 60 % of the values, the lighter 90 %."
    )
    return f"Actual values (black) and forecasts (coloured) after the dotted line.{bands}"


def _draw_window(axes: Axes, window: DrawnWindow, levels: Sequence[float]) -> None:
    before, ahead = np.arange(-len(window.history) + 1, 1), np.arange(1, len(window.mean) + 1)
    axes.plot(before, window.history, color="black", linewidth=1.2, label="actual")
    axes.plot(np.append(0, ahead), np.append(window.history[-1:], window.target), color="black", linewidth=1.2)
    middle: Reals = window.mean
    if window.quantiles is not None:
        found = {level: window.quantiles[:, place] for place, level in enumerate(levels)}
        for low, high, alpha, name in ((0.05, 0.95, 0.18, "90%"), (0.2, 0.8, 0.35, "60%")):
            if low in found and high in found:
                axes.fill_between(
                    ahead, found[low], found[high], color=COLOURS[0], alpha=alpha, linewidth=0, label=name
                )
        middle = found[0.5]
    axes.plot(ahead, middle, color=COLOURS[0], linewidth=2, label="predicted")
    axes.axvline(0.5, color=GREY, linestyle=":")
    axes.set_title(f"{window.name}, from {window.begins}", fontsize=13, loc="left")
    label(axes, "", "")
    whole(axes)


def draw_by_step(errors: Mapping[str, Floats], unit: str, path: Path) -> str:
    """Draw the mean absolute error over the steps ahead, the first model in front; returns what to see.

    Args:
        errors: (H,) of each model by name, ours first.
        unit: of a step.
        path: the PNG to write.
    """
    figure = canvas(5.5)
    axes = figure.subplots()
    for place, (name, values) in enumerate(errors.items()):
        style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
        marker = "o" if len(values) <= 2 else ""
        axes.plot(
            np.arange(1, len(values) + 1), values, linewidth=1.5 + 1.5 * (not place), marker=marker, label=name, **style
        )
    axes.set_ylim(bottom=0)
    label(axes, f"steps ahead ({unit})", "mean |error|")
    whole(axes)
    figure.legend(loc="outside upper center", ncols=min(len(errors), 6), fontsize=13, frameon=False)
    save(figure, path)
    ours, *others = errors.items()
    first, last = (min(others, key=lambda other: other[1][place], default=ours) for place in (0, -1))
    return (
        f"Mean error by step ahead: {ours[1][0]:.4g} at the first, {ours[1][-1]:.4g} at the last; the best of the "
        f"others {first[1][0]:.4g} ({first[0]}) and {last[1][-1]:.4g} ({last[0]})."
    )


def draw_residuals(target: Floats, median: Floats, quantiles: Reals | None, levels: Sequence[float], path: Path) -> str:
    """Draw the errors of one step ahead in order, and the share of values below each quantile; returns what to see.

    Args:
        target, median: (N, H), in the order of time.
        quantiles: (N, H, Q) at `levels`.
        path: the PNG to write.
    """
    figure = canvas(5.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    errors = target[:, 0] - median[:, 0]
    left.axhline(0, color=GREY, linestyle=":")
    left.plot(errors, ".", color=COLOURS[0], markersize=3 if len(errors) > 100 else 8)
    label(left, "window", "actual − median, one step ahead")
    whole(left)
    there = ~np.isnan(target)
    right.plot([0, 1], [0, 1], ":", color=GREY, label="perfect calibration")
    words = ""
    if quantiles is not None:
        shares = [(target[there] <= quantiles[..., place][there]).mean() for place in range(len(levels))]
        right.plot(levels, shares, "o-", color=COLOURS[0], label="share of values below")
        apart = max(zip(levels, shares, strict=True), key=lambda pair: abs(pair[0] - pair[1]))
        words = f" Right: {apart[1]:.1%} of the values lie below q{apart[0]:g}, the quantile that is furthest off."
    label(right, "quantile", "")
    legend(right, loc="upper left")
    save(figure, path)
    known = errors[~np.isnan(errors)]
    return (
        f"Left: errors one step ahead, mean {known.mean():+.3g}, standard deviation {known.std():.3g}; a pattern here "
        f"could still be learned.{words}"
    )
