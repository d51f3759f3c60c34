"""Layers as stacked boxes: folded, with a delay beside each layer, or unfolded, with a column for each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from everstep.cell import Cell, Layer
from everstep.look.diagram import leaf_name, symbol
from everstep.look.drawing import (
    BACK,
    FAINT,
    FILLS,
    INK,
    LATER,
    SIZE,
    SMALL,
    box,
    figure_of,
    heading,
    inches,
    square,
    straight,
)
from everstep.look.layout import Point
from everstep.state import leaves

BOX = 2.3, 0.78
ACROSS, UP = 1.7, 0.85
"""Inches between the boxes of an unfolded graph."""


class LayerBox(NamedTuple):
    """A layer as a box: its name, its state leaves with shapes, and the shapes of input and output."""

    name: str
    state: tuple[tuple[str, str], ...]
    takes: str
    gives: str


def row_of(layer: Layer, x: Tensor) -> LayerBox:
    """The box of a layer; `x` gives dtype and device."""
    state = layer.initial_state(1, x)
    named = [(leaf_name(name), f"({', '.join(['B', *map(str, leaf.shape[1:])])})") for name, leaf in leaves(state)]
    return LayerBox(_named(layer), tuple(named), f"(B, {layer.input_size})", f"(B, {layer.output_size})")


def _named(layer: Layer) -> str:
    inside = getattr(layer, "cell", None)
    name = type(layer).__name__
    return f"{name}({_named(inside)})" if isinstance(inside, Cell) else name


def _widest(rows: Sequence[LayerBox]) -> float:
    return max(BOX[0] / 2, *(0.1 * len(row.name) + 0.3 for row in rows))


def _heights(rows: Sequence[LayerBox]) -> list[float]:
    """The height of each box's centre; states with many leaves need more space."""
    y, found = 0.0, []
    for row in rows:
        tall = max(BOX[1], 0.34 * min(len(row.state), 6))
        found.append(y + tall / 2)
        y += tall + UP
    return found


def _upright(
    axes: Axes, x: float, ys: Sequence[float], rows: Sequence[LayerBox], when: str, shapes: bool = True
) -> None:
    """Draw a column of boxes, from the input at the bottom to the output at the top."""
    width = _widest(rows)
    bottom, top = ys[0] - BOX[1] / 2 - UP, ys[-1] + BOX[1] / 2 + UP
    for row, y, below in zip(rows, ys, [bottom, *(y + BOX[1] / 2 for y in ys[:-1])], strict=True):
        box(axes, (x, y), (width, BOX[1]), FILLS["product"], 0.08)
        axes.text(x, y, row.name, fontsize=SIZE + 1, color=INK, ha="center", va="center")
        straight(axes, (x, below), (x, y - BOX[1] / 2))
        if shapes:
            axes.text(x + 0.07, (below + y - BOX[1] / 2) / 2, row.takes, fontsize=SMALL, color=FAINT, va="center")
    straight(axes, (x, ys[-1] + BOX[1] / 2), (x, top))
    if shapes:
        axes.text(x + 0.07, (ys[-1] + BOX[1] / 2 + top) / 2, rows[-1].gives, fontsize=SMALL, color=FAINT, va="center")
    axes.text(x, bottom - 0.2, symbol("x", when), fontsize=SIZE + 3, color=INK, ha="center", va="center")
    axes.text(x, top + 0.2, symbol("y", when), fontsize=SIZE + 3, color=INK, ha="center", va="center")


def _span(ys: Sequence[float]) -> Point:
    return ys[0] - BOX[1] / 2 - UP - 0.45, ys[-1] + BOX[1] / 2 + UP + 0.45


def folded_boxes(rows: Sequence[LayerBox], title: str) -> Figure:
    """A column of boxes, with a delay beside each layer that has a state."""
    ys, width = _heights(rows), _widest(rows)
    bottom, top = _span(ys)
    wide = 0.085 * max((len(line) for row in rows for line in _state_lines(row)), default=0)
    axes = inches(-width / 2 - 0.3, width / 2 + 1.1 + max(wide, 1.2), bottom, top + 0.35)
    heading(axes, title)
    _upright(axes, 0, ys, rows, "t")
    for row, y in zip(rows, ys, strict=True):
        if row.state:
            right, out = width / 2, width / 2 + 0.55
            line = [(right, y + 0.22), (out, y + 0.22), (out, y - 0.22), (right + 0.01, y - 0.22)]
            axes.plot(*zip(*line[:3], strict=True), color=BACK, linewidth=1.2)
            straight(axes, line[2], line[3], BACK)
            square(axes, (out, y))
            lines = [*_state_lines(row), LATER]
            axes.text(out + 0.18, y, "\n".join(lines), fontsize=SMALL, color=BACK, va="center")
    return figure_of(axes)


def _state_lines(row: LayerBox) -> list[str]:
    shown = [f"{name} {shape}" for name, shape in row.state[:5]]
    return shown if len(row.state) <= 5 else [*shown, f"and {len(row.state) - 5} more"]


def unfolded_boxes(rows: Sequence[LayerBox], steps: int, title: str) -> Figure:
    """A column of boxes for each step, with the states on the arrows between them."""
    ys, width = _heights(rows), _widest(rows)
    bottom, top = _span(ys)
    gap = max(ACROSS, *(0.085 * len(line) + 0.35 for row in rows for line in _state_lines(row)), 0)
    apart = width + gap
    axes = inches(-width / 2 - gap, (steps - 1) * apart + width / 2 + gap, bottom, top + 0.35)
    heading(axes, title)
    for step in range(steps):
        x = step * apart
        _upright(axes, x, ys, rows, str(step + 1))
        for row, y in zip(rows, ys, strict=True):
            if row.state:
                _between(axes, row, y, x - width / 2 - gap, x - width / 2, step, gap)
                if step == steps - 1:
                    _between(axes, row, y, x + width / 2, x + width / 2 + gap, steps, gap)
    return figure_of(axes)


def _between(axes: Axes, row: LayerBox, y: float, left: float, right: float, step: int, gap: float) -> None:
    """Draw the arrows of a layer's state between two steps: one per leaf for up to three leaves, else one in total."""
    few = row.state if len(row.state) <= 3 else ()
    lines = [f"{symbol(name, str(step))} {shape}" for name, shape in few] or ["\n".join(_state_lines(row))]
    spread = BOX[1] / len(lines)
    for k, line in enumerate(lines):
        height = y + spread * ((len(lines) - 1) / 2 - k)
        straight(axes, (left, height), (right, height), BACK)
        axes.text(left + gap / 2, height + 0.04, line, fontsize=SMALL, color=BACK, ha="center", va="bottom")
