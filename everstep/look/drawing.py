"""Elements of drawn graphs: axes in inches, arrows, boxes, delay squares, colours, font sizes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Curve

from everstep.look.layout import Point

# light versions of the colours of Okabe and Ito; the kind of a node also shows in its text and shape
FILLS = {"input": "white", "output": "white", "product": "#DCEBF7", "gate": "#FCE3C5", "pointwise": "#E6F2E6"}
INK, FAINT, BACK = "#222222", "#555555", "#B34700"
SIZE, SMALL = 11, 9
LATER = "one step later"


def inches(left: float, right: float, bottom: float, top: float) -> Axes:
    """Axes in which one unit is one inch."""
    figure = Figure(figsize=(right - left, top - bottom), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(left, right), ylim=(bottom, top))
    return axes


def arrow(axes: Axes, curve: Sequence[Point], colour: str = INK) -> None:
    """Draw a cubic Bézier curve of 3 n + 1 points with an arrow head."""
    codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(curve) - 1)
    head = FancyArrowPatch(
        path=Curve(curve, codes), arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=0.9, shrinkA=0, shrinkB=0
    )
    axes.add_patch(head)


def straight(axes: Axes, start: Point, stop: Point, colour: str = INK) -> None:
    """Draw a straight arrow."""
    (a, b), (c, d) = start, stop
    arrow(axes, [start, ((2 * a + c) / 3, (2 * b + d) / 3), ((a + 2 * c) / 3, (b + 2 * d) / 3), stop], colour)


def box(axes: Axes, centre: Point, size: Point, colour: str, rounded: float) -> None:
    """Draw a box with corner radius `rounded`."""
    (x, y), (width, height) = centre, size
    style = f"round,pad=0,rounding_size={min(rounded, width / 2, height / 2)}" if rounded else "square,pad=0"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=INK, linewidth=1))


def square(axes: Axes, centre: Point) -> None:
    """Draw the square of a one-step delay."""
    x, y = centre
    axes.add_patch(Rectangle((x - 0.08, y - 0.08), 0.16, 0.16, facecolor=BACK, edgecolor=BACK))


def figure_of(axes: Axes) -> Figure:
    """The figure that the axes fill."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def heading(axes: Axes, title: str) -> None:
    """Write a title at the top left."""
    axes.annotate(
        title, (0, 1), (12, -10), "axes fraction", "offset points", fontsize=SIZE + 2, color=INK, va="top", ha="left"
    )


def points_on(curve: Sequence[Point]) -> list[Point]:
    """Points on a Bézier curve, including its ends (control points may lie far from the curve)."""
    found = [curve[0]]
    for place in range(0, len(curve) - 1, 3):
        a, b, c, d = curve[place : place + 4]
        for t in (0.25, 0.5, 0.75, 1.0):
            weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            found.append((_mean(weights, (a, b, c, d), 0), _mean(weights, (a, b, c, d), 1)))
    return found


def _mean(weights: Sequence[float], points: Sequence[Point], axis: int) -> float:
    return sum(weight * point[axis] for weight, point in zip(weights, points, strict=True))
