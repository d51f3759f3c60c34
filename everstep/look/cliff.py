"""A loss cliff, where gradients explode, and the effect of clipping there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.learn.rules import clip_by_global_norm
from everstep.look.style import canvas, save
from everstep.look.surface import Descent, Surface, descend, draw_surface, say, surface

STEPS, TARGET = 50, 0.7
START, RATE, NORM = (5.3, -1.7), 0.5, 0.05
WINDOW = (3.8, 5.8), (-2.7, -1.35)
THROWN, KEPT = "#E69F00", "#FFFFFF"  # orange and white, distinct on blue and yellow, also for the colour-blind
_OUTLINE: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=5, foreground="black")]


class OneUnit(Cell):
    """h_t = w · σ(h_{t-1}) + b with h_0 = 0.5: the smallest network with a cliff (Pascanu 2013, figure 6).

    >>> cliff_loss(OneUnit(5.5, -1.7)).item() < 0.1 < cliff_loss(OneUnit(5.5, -3.0)).item()
    True

    Args:
        w, b: initial values of the two parameters, which are float64.
    """

    def __init__(self, w: float, b: float):
        super().__init__(1, 1)
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([b], dtype=torch.float64))

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        """0.5."""
        return like.new_full((batch, 1), 0.5)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step; x is ignored."""
        h = self.w * torch.sigmoid(state) + self.b
        return h, h


def cliff_loss(model: nn.Module) -> Tensor:
    """(σ(h_50) − 0.7)² of a `OneUnit`; a scalar."""
    ys, _ = model(torch.zeros(1, STEPS, 1, dtype=torch.float64))
    return (torch.sigmoid(ys[0, -1, 0]) - TARGET) ** 2


def cliff(side: int = 121, steps: int = 400) -> tuple[Surface, Descent, Descent]:
    """The surface of `OneUnit` over (w, b), and gradient descent on it without and with clipping by global norm.

    Args:
        side: points along each axis.
        steps: number of steps of each descent.
    """
    along_w, along_b = ({n: torch.tensor([float(n == axis)], dtype=torch.float64) for n in "wb"} for axis in "wb")
    across, up = (torch.linspace(low, high, side, dtype=torch.float64).tolist() for low, high in WINDOW)
    found = surface(OneUnit(0.0, 0.0), cliff_loss, (along_w, along_b), across, up)
    origin = {name: torch.zeros(1, dtype=torch.float64) for name in "wb"}
    without, clipped = (
        descend(OneUnit(*START), cliff_loss, (along_w, along_b), origin, rate=RATE, steps=steps, rules=rules)
        for rules in ([], [clip_by_global_norm(NORM)])
    )
    return found, without, clipped


def cliff_picture(to: Path, side: int = 121) -> str:
    """Draw the cliff with both descents; returns the caption."""
    found, without, clipped = cliff(side)
    figure = canvas(8.0, 11.0)
    axes = figure.subplots()
    draw_surface(axes, found, "recurrent weight w", "bias b", "loss (σ(h₅₀) − 0.7)²")
    jump = _draw_thrown(axes, without)
    _draw_kept(axes, clipped)
    axes.plot(*START, marker="o", color="white", markeredgecolor="black", markersize=13, zorder=6)
    say(axes, "the cliff", (4.97, -2.6), (-66, -14))
    say(axes, "both start here", START, (12, -26))
    save(figure, to)
    return (
        "One unit, h_t = w·σ(h_{t-1}) + b, after 50 steps: the edge between yellow and blue is the cliff. Without "
        f"clipping (orange), one step at the cliff has a gradient of norm {float(without.norms.max()):.0f} and moves "
        f"the weights by {jump:.0f}, out of the picture. Clipped to norm {NORM:g} (white), the same descent turns at "
        f"the wall and follows the blue valley down to a loss of {float(clipped.losses[-50:].min()):.1g}."
    )


def _draw_thrown(axes: Axes, path: Descent) -> float:
    """Draw a descent up to its longest step, as an arrow; returns the length of that step."""
    lengths = [float((after - before).norm()) for before, after in pairwise(path.places)]
    last = max(range(len(lengths)), key=lengths.__getitem__)
    here, there = path.places[last], path.places[last + 1]
    axes.plot(*path.places[: last + 1].T.numpy(), color=THROWN, linewidth=2.5, path_effects=_OUTLINE, zorder=4)
    share = 0.72 * _leaving(here, there)
    tip = here + share * (there - here)
    arrow = {"arrowstyle": "-|>,head_width=0.5,head_length=0.9", "color": THROWN, "linewidth": 3, "shrinkA": 0}
    made = axes.annotate("", _point(tip), _point(here), arrowprops=arrow, zorder=5)
    if made.arrow_patch is not None:
        made.arrow_patch.set_path_effects(_OUTLINE)
    say(axes, f"without clipping:\nthrown to w = {there[0]:.0f}, b = {there[1]:.0f}", _point(tip), (12, -6), THROWN)
    return lengths[last]


def _point(place: Tensor) -> tuple[float, float]:
    return float(place[0]), float(place[1])


def _leaving(here: Tensor, there: Tensor) -> float:
    """The share of the way from `here` to `there` at which it leaves the window; at most 1."""
    shares = [1.0]
    for axis, (low, high) in enumerate(WINDOW):
        way = float(there[axis] - here[axis])
        if way:
            shares.append(((high if way > 0 else low) - float(here[axis])) / way)
    return min(shares)


def _draw_kept(axes: Axes, path: Descent) -> None:
    axes.plot(*path.places.T.numpy(), color=KEPT, linewidth=1.5, path_effects=_OUTLINE, zorder=3)
    end = _point(path.places[-1])
    axes.plot(*end, marker="*", color=KEPT, markeredgecolor="black", markersize=22, zorder=6)
    say(axes, "clipped:\ndown the valley", end, (4, 40), KEPT)
