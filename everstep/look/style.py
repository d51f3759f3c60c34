"""How the pictures of the laboratory look: one size, one set of colours, one way to label axes and to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; the lighter ones last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
"""So that lines differ in grey too."""
GREY = "#666666"
SHADES = colormaps["cividis"]


def canvas(height: float = 6.0, width: float = 12.0) -> Figure:
    """A figure, 1200 pixels wide, in inches of 100 pixels."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def label(axes: Axes, x: str, y: str) -> None:
    """Axes with names that can be read at the width of a README."""
    axes.set_xlabel(x, fontsize=15)
    axes.set_ylabel(y, fontsize=15)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, **where: Any) -> None:
    """A legend without a frame."""
    axes.legend(fontsize=14, frameon=False, **where)


def save(figure: Figure, path: Path) -> None:
    """Write the PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
