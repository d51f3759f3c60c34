"""The unfolded graph with every node shaded by its sensitivity to the first input (Graves 2012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle
from numpy.typing import NDArray

from everstep.look.style import GREY, canvas, save

SCALE = LogNorm(0.01, 1)
SHADES = colormaps["Blues"]
RADIUS = 0.27
GAP = 1.15  # between rows, where steps are 1 apart
INK = "#1A1A1A"


@dataclass(frozen=True)
class Unfolded:
    """One network over time.

    Attributes:
        title: the title above its graph.
        rows: from the input up, the sensitivity of each node to x_1 at every step (time,).
        asked: (time,), steps to mark, at which the network must answer.
        gates: "input", "forget" and "output", each (time,) in [0, 1]; drawn around the middle row; may be empty.
    """

    title: str
    rows: Mapping[str, NDArray[np.float64]]
    asked: NDArray[np.bool_]
    gates: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def draw_unfolded(networks: Sequence[Unfolded], path: Path) -> None:
    """Draw the graphs one below the other: dark circles depend on the first input, white ones do not.

    A gate above ½ is drawn as ○ (open), one below as —: the input gate below its cell, the forget gate on the arrow
    from the previous step, the output gate above.

    Args:
        networks: the networks, from the top.
        path: the PNG to write.
    """
    figure = canvas(0.9 + 4.3 * len(networks))
    graphs = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axes, network in zip(graphs, networks, strict=True):
        _graph(axes, network)
    bar = figure.colorbar(ScalarMappable(SCALE, SHADES), ax=list(graphs), location="bottom", aspect=55, shrink=0.8)
    bar.set_ticks([0.01, 0.1, 1], labels=["≤ 0.01", "0.1", "≥ 1"])
    bar.set_label(
        r"sensitivity to the first input, $\|\partial\,$node$\,/\,\partial x_1\|$, that of the state at step 1 being 1",
        fontsize=14,
    )
    bar.ax.tick_params(labelsize=13)
    save(figure, path)


def _graph(axes: Axes, network: Unfolded) -> None:
    time = len(network.asked)
    axes.set_title(network.title, fontsize=17, loc="left", color=INK)
    axes.set_axis_off()
    axes.set(xlim=(-0.55, time + 0.45), ylim=(-0.8, GAP * (len(network.rows) - 1) + 0.5))
    axes.set_aspect("equal")
    middle = 1
    for place, (name, values) in enumerate(network.rows.items()):
        height = GAP * place
        axes.text(0.48, height, name, fontsize=14, ha="right", va="center", color=INK)
        for step, value in enumerate(values, 1):
            colour = SHADES(SCALE(min(max(value, 0.01), 1.0)))
            axes.add_patch(Circle((step, height), RADIUS, facecolor=colour, edgecolor=INK, linewidth=1.4, zorder=3))
            if place + 1 < len(network.rows):
                _arrow(axes, (step, height + RADIUS), (step, height + GAP - RADIUS))
            if place == middle and step < time:
                _arrow(axes, (step + RADIUS, height), (step + 1 - RADIUS, height))
    for step, asked in enumerate(network.asked, 1):
        text = f"{step}\nasked" if asked else str(step)
        axes.text(step, -0.4, text, fontsize=13, ha="center", va="top", color=INK, weight="bold" if asked else "normal")
    axes.text(0.48, -0.4, "step", fontsize=13, ha="right", va="top", color=GREY)
    half = RADIUS + (GAP - 2 * RADIUS) / 2
    offsets = {"input": (0.0, -half), "forget": (-0.5, 0.0), "output": (0.0, half)}
    for gate, values in network.gates.items():
        for step, value in enumerate(values, 1):
            if gate != "forget" or step > 1:
                across, up = offsets[gate]
                _gate(axes, step + across, GAP * middle + up, bool(value > 0.5))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=1)


def _gate(axes: Axes, x: float, y: float, is_open: bool) -> None:
    if is_open:
        axes.add_patch(Circle((x, y), 0.1, facecolor="white", edgecolor=INK, linewidth=2, zorder=4))
        return
    axes.add_patch(Circle((x, y), 0.14, facecolor="white", linewidth=0, zorder=3.5))
    axes.plot([x - 0.13, x + 0.13], [y, y], color=INK, linewidth=3.5, solid_capstyle="butt", zorder=4)
