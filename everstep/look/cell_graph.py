"""Folded and unfolded graphs of a cell or stack, as SVG or PNG, with shapes on the arrows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everstep.cell import Layer
from everstep.look import layout
from everstep.look.boxes import folded_boxes, row_of, unfolded_boxes
from everstep.look.diagram import Diagram, Item, step_diagram
from everstep.look.drawing import (
    BACK,
    FAINT,
    FILLS,
    INK,
    LATER,
    SIZE,
    SMALL,
    arrow,
    box,
    figure_of,
    heading,
    inches,
    points_on,
    square,
    straight,
)
from everstep.look.layout import NodeLayout, Point
from everstep.look.trajectory import check_causal, parts


def draw_graph(layer: Layer, to: Path, *, unfolded: int | None = None) -> None:
    """Draw the graph of a cell or stack, dark on white.

    Folded, a cell shows the operations of its traced step; the state returns below through a small square, a delay of
    one step. A stack shows a box for each layer, each with its delay. Unfolded, there is a column of boxes for each of
    N steps from left to right, with the states on the arrows between them. B is the batch size.

    >>> from everstep import LSTM
    >>> draw_graph(LSTM(64, 128), getfixture("tmp_path") / "lstm.svg")
    >>> draw_graph(LSTM(64, 128), getfixture("tmp_path") / "unfolded.svg", unfolded=3)

    Args:
        layer: the cell or stack.
        to: an .svg or .png file; its folder is created.
        unfolded: N, 2 … 12; None draws the folded graph.

    Raises:
        TypeError: the layer is acausal.
        ValueError: another file type, or N out of range.
        Untraceable: the step cannot be traced, with the reason. Boxes need no trace.

    Known limits: the picture does not show the order of operands of a subtraction or division. A cell with many
    operations gives a wide picture.
    """
    if to.suffix not in (".svg", ".png"):
        raise ValueError(f"draw_graph: expected a file that ends in .svg or .png, but got {to.name!r}")
    if unfolded is not None and not 2 <= unfolded <= 12:
        raise ValueError(f"draw_graph: expected 2 to 12 steps, but got {unfolded}")
    cell = check_causal("draw_graph", layer)
    like = next((p.detach() for p in cell.parameters() if p.is_floating_point()), torch.zeros(1))
    x = like.new_zeros(1, cell.input_size)
    rows = [row_of(part, x) for part in parts(cell)]
    name = rows[0].name if len(rows) == 1 else type(cell).__name__
    with rc_context({"svg.hashsalt": "everstep", "svg.fonttype": "none", "font.family": ["DejaVu Sans", "sans-serif"]}):
        if unfolded is not None:
            figure = unfolded_boxes(rows, unfolded, f"{name} unfolded over {unfolded} steps")
        elif len(rows) > 1:
            figure = folded_boxes(rows, f"{name}, {len(rows)} layers")
        else:
            figure = _step(step_diagram(cell, x), f"One step of {name}; B: sequences at once")
        to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(to, metadata={"Date": None} if to.suffix == ".svg" else None)


def _step(diagram: Diagram, title: str) -> Figure:
    sizes = {key: _extent(item) for key, item in diagram.items.items()}
    longest = max(len(item.shape) for item in diagram.items.values())
    gap = 0.24 + 0.065 * longest  # so that shapes on arrows fit between the nodes
    laid = layout.place(sizes, diagram.edges, diagram.kind("input"), diagram.kind("output"), gap)
    corners = [p for curve in laid.curves for p in points_on(curve)]
    for key, (x, y) in laid.centres.items():
        width, height = sizes[key]
        corners += [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*corners, strict=True))
    lanes = len(diagram.delays)
    margin = 0.4 + 0.16 * lanes
    axes = inches(left - margin, right + margin, low - 0.35 - 0.34 * lanes, high + 0.6)
    heading(axes, title)
    shown: set[str] = set()
    for (source, _), curve in zip(diagram.edges, laid.curves, strict=True):
        arrow(axes, curve)
        if source not in shown:  # all arrows out of a node carry the same shape
            shown.add(source)
            _shape(axes, curve, diagram.items[source].shape)
    for key, item in diagram.items.items():
        _node(axes, item, laid.centres[key], sizes[key])
    for lane, (source, target) in enumerate(diagram.delays):
        _delay(axes, laid, sizes, (source, target), lane, low, (left, right))
    return figure_of(axes)


def _extent(item: Item) -> Point:
    lines = [_plain(line) for line in item.lines]
    wide = 0.095 * max(map(len, lines)) + 0.24
    return max(wide, 0.42), 0.21 * len(lines) + 0.17


def _plain(line: str) -> str:
    """The line with about as many characters as its mathtext shows."""
    for mark in (r"\mathit", "$", "{", "}", "\\"):
        line = line.replace(mark, "")
    return line.replace("_", "", line.count("_") if "t" in line[-4:] else 0)


def _node(axes: Axes, item: Item, centre: Point, size: Point) -> None:
    (x, y), (_, height) = centre, size
    if item.kind in FILLS and item.kind not in ("input", "output"):
        box(axes, centre, size, FILLS[item.kind], {"pointwise": height, "gate": 0.12}.get(item.kind, 0.0))
    for k, line in enumerate(item.lines):
        axes.text(
            x,
            y + 0.21 * ((len(item.lines) - 1) / 2 - k),
            line,
            fontsize=_letters(item, k),
            weight="bold" if item.kind == "gate" else "normal",
            color=INK,
            ha="center",
            va="center",
        )


def _letters(item: Item, line: int) -> float:
    if item.kind in ("input", "output"):
        return SIZE + 2
    if item.kind == "pointwise" and len(item.lines[0]) == 1:
        return SIZE + 5
    return SIZE if line == 0 else SMALL


def _shape(axes: Axes, curve: Sequence[Point], shape: str) -> None:
    """Write the shape at the start of an arrow."""
    (x, y), up = curve[0], 1 if curve[3][1] >= curve[0][1] else -1
    behind: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    side = "bottom" if up > 0 else "top"
    axes.text(x + 0.07, y + 0.04 * up, shape, fontsize=SMALL - 1, color=FAINT, bbox=behind, va=side)


def _delay(
    axes: Axes,
    laid: NodeLayout,
    sizes: dict[str, Point],
    edge: tuple[str, str],
    lane: int,
    low: float,
    ends: Point,
) -> None:
    """Draw the edge from an output back to an input, below the graph, through the square of a delay."""
    (ax, ay), (bx, by) = (laid.centres[key] for key in edge)
    out, back = ends[1] + 0.18 + 0.16 * lane, ends[0] - 0.18 - 0.16 * lane
    floor = low - 0.3 - 0.34 * lane
    line = [(ax + sizes[edge[0]][0] / 2, ay), (out, ay), (out, floor), (back, floor), (back, by)]
    axes.plot(*zip(*line, strict=True), color=BACK, linewidth=1.2, solid_joinstyle="round")
    straight(axes, (back, by), (bx - sizes[edge[1]][0] / 2, by), BACK)
    square(axes, ((out + back) / 2, floor))
    axes.text((out + back) / 2 + 0.15, floor + 0.03, LATER, fontsize=SMALL, color=BACK, va="bottom")
