"""Pictures of drawings: as SVG, in grids, by surprise, and the density of the next point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from everstep.look.style import COLOURS, SHADES, canvas, save

Drawn = NDArray[Any]
"""A drawing: (T, 3), Δx, Δy, and whether the pen is lifted behind the point; y grows downwards."""
Density: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
GRID = 201
"""Places of a density in each direction."""


def paths_of(drawing: Drawn) -> list[NDArray[np.float64]]:
    """The points (n, 2) of each path between two lifts.

    >>> [path.tolist() for path in paths_of(np.array([[1, 1, 0], [2, 0, 1], [0, 3, 1]]))]
    [[[1.0, 1.0], [3.0, 1.0]], [[3.0, 4.0]]]
    """
    places = drawing[:, :2].astype(np.float64).cumsum(0)
    lifts = np.flatnonzero(drawing[:, 2] > 0) + 1
    return [path for path in np.split(places, lifts) if len(path)]


def svg_bytes(drawing: Drawn, size: float = 400.0) -> bytes:
    """A drawing as an SVG picture, `size` pixels in its longer direction; a path of one point is a dot."""
    paths = [path if len(path) > 1 else path[[0, 0]] for path in paths_of(drawing)]
    every = np.concatenate([*paths, *([] if paths else [np.zeros((1, 2))])])
    low, extent, pad = bounds(every, 0.05)
    width, height = (every.max(0) - every.min(0) + 2 * pad).tolist()
    box = f"{low[0]:.6g} {low[1]:.6g} {width:.6g} {height:.6g}"
    size /= extent
    lines = [" ".join(f"{x:.6g},{y:.6g}" for x, y in path.tolist()) for path in paths]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{width * size:.6g}" '
            f'height="{height * size:.6g}">',
            f'<g fill="none" stroke="black" stroke-width="{extent / 80:.4g}" stroke-linecap="round">',
            *(f'<polyline points="{line}"/>' for line in lines),
            "</g>\n</svg>\n",
        ]
    ).encode()


def bounds(places: NDArray[np.float64], share: float) -> tuple[NDArray[np.float64], float, float]:
    """The lowest corner of a frame around places (n, 2), their extent in the longer direction, and the frame's width,
    a `share` of it."""
    extent = float((places.max(0) - places.min(0)).max()) or 1.0
    return places.min(0) - share * extent, extent, share * extent


def draw_grid(held_out: Sequence[Drawn], made: Sequence[Drawn], path: Path, columns: int = 8) -> str:
    """Draw held-out drawings above generated ones; returns what to see."""
    rows = [-(-len(some) // columns) for some in (held_out, made)]
    figure = canvas(1.5 * sum(rows) + 1.0)
    every = figure.subplots(sum(rows), columns, squeeze=False)
    for axes in every.ravel():
        axes.set_axis_off()
    parts = (("held out", every[: rows[0]], held_out, "black"), ("generated", every[rows[0] :], made, COLOURS[0]))
    for name, places, some, colour in parts:
        places[0, 0].set_title(name, fontsize=16, loc="left")
        for axes, drawing in zip(places.ravel(), some, strict=False):
            _lines(axes, drawing, colour)
            _frame(axes, drawing, 0.1)
    save(figure, path)
    return f"Above, {len(held_out)} held-out drawings; below, {len(made)} that the model made."


def draw_next(drawing: Drawn, bits: Sequence[float], density: Density, path: Path) -> str:
    """Draw which points of a drawing surprised the model, and where it expected them; returns what to see.

    Args:
        drawing: (T, 3).
        bits: −log₂ p of each point.
        density: maps places (n, 2) to Σ_t p(point t is there | points before it), (n,).
        path: the PNG to write.
    """
    figure = canvas(6.0)
    left, right = figure.subplots(1, 2)
    places = drawing[:, :2].astype(np.float64).cumsum(0)
    drawn = np.flatnonzero(drawing[:-1, 2] == 0) + 1  # points that a line leads to
    dots = left.scatter(*places.T, c=bits, s=30, cmap=SHADES, zorder=3)
    pieces = [places[t - 1 : t + 1] for t in drawn]
    left.add_collection(LineCollection(pieces, array=np.asarray(bits)[drawn], linewidth=3, cmap=SHADES, norm=dots.norm))
    figure.colorbar(dots, ax=left, shrink=0.8).set_label("surprise of a point, bits", fontsize=14)
    low, extent, pad = bounds(places, 0.15)
    edge = np.linspace(0, extent + 2 * pad, GRID)
    grid = low + np.stack(np.meshgrid(edge, edge), -1)
    found = density(grid.reshape(-1, 2)).reshape(GRID, GRID)
    shown = np.log10(found / found.max() + 1e-4)
    corners = (low[0], low[0] + edge[-1], low[1] + edge[-1], low[1])
    right.imshow(shown, extent=corners, cmap="Blues", interpolation="bilinear")
    _lines(right, drawing, COLOURS[1], 1.0)
    for axes, name in ((left, "surprise"), (right, "where the next point was expected")):
        _frame(axes, drawing, 0.15)
        axes.set_axis_off()
        axes.set_title(name, fontsize=16, loc="left")
    save(figure, path)
    return (
        f"Left, a drawing with the surprise of each point, {np.mean(bits):.1f} bits on average (of a density: they may "
        "be below 0); right, the densities of each next point given those before it, added up, on a logarithmic scale "
        "of four decades (after Graves 2013)."
    )


def _frame(axes: Axes, drawing: Drawn, share: float) -> None:
    """A square around a drawing, y downwards."""
    places = drawing[:, :2].astype(np.float64).cumsum(0)
    if len(places):
        _, extent, pad = bounds(places, share)
        middle = (places.max(0) + places.min(0)) / 2
        half = extent / 2 + pad
        axes.set_xlim(middle[0] - half, middle[0] + half)
        axes.set_ylim(middle[1] + half, middle[1] - half)
    axes.set_aspect("equal")


def _lines(axes: Axes, drawing: Drawn, colour: str, width: float = 1.6) -> None:
    for path in paths_of(drawing):
        axes.plot(*path.T, color=colour, linewidth=width, marker="." if len(path) == 1 else None)
