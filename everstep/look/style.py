"""The common style of pictures: size, colours, labels, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# the colours of Okabe and Ito, distinct for the colour-blind; light ones last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
"""Line styles, so that lines also differ in grey."""
GREY = "#666666"
SHADES = colormaps["cividis"]


def canvas(height: float = 6.0, width: float = 12.0) -> Figure:
    """A figure of `width` × `height` inches at 100 pixels per inch."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def label(axes: Axes, x: str, y: str) -> None:
    """Label axes in a size that is readable at the width of a README."""
    axes.set_xlabel(x, fontsize=15)
    axes.set_ylabel(y, fontsize=15)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def whole(axes: Axes) -> None:
    """Ticks of steps or windows, which are whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend(axes: Axes, **where: Any) -> None:
    """Add a legend without a frame."""
    axes.legend(fontsize=14, frameon=False, **where)


def save(figure: Figure, path: Path) -> None:
    """Write the PNG; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
