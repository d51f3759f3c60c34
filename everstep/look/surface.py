"""The loss over a plane of parameters, and the path of gradient descent on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from everstep.learn.optim import trainable
from everstep.learn.rules import Rule
from everstep.look.style import SHADES, canvas, save

Direction = dict[str, Tensor]  # one entry for every trainable parameter, by name
LossOf = Callable[[nn.Module], Tensor]
Progress = Callable[[int, int], None]
"""Called with the amounts (done, total)."""


@dataclass(frozen=True)
class Surface:
    """Losses over a plane.

    Attributes:
        across: (W,) coordinates a along the first direction.
        up: (H,) coordinates b along the second direction.
        losses: (H, W) loss at θ + a·d₁ + b·d₂, in the unit of the loss.
    """

    across: Tensor
    up: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Descent:
    """The path of plain gradient descent.

    Attributes:
        places: (steps + 1, 2) coordinates in the plane; for parameters outside it, those of the nearest point.
        losses: (steps + 1,) losses along the path.
        norms: (steps,) gradient norms, before any rule.
    """

    places: Tensor
    losses: Tensor
    norms: Tensor


def random_plane(model: nn.Module, seed: int = 0) -> tuple[Direction, Direction]:
    """Two random directions, scaled per parameter to the norm of that parameter (after Li 2018, whole tensors).

    So a point at coordinate 1 is as far from the model as the model is from zero. A parameter of zeros does not move.

    >>> first, _ = random_plane(nn.Linear(2, 1, bias=False), seed=1)
    >>> list(first)
    ['weight']
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Direction:
        parts = {}
        for name, parameter in trainable(model).items():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parts[name] = noise * (parameter.detach().norm() / noise.norm().clamp_min(1e-30))
        return parts

    return drawn(), drawn()


@torch.no_grad()
def surface(
    model: nn.Module,
    loss: LossOf,
    plane: tuple[Direction, Direction],
    across: Sequence[float],
    up: Sequence[float],
    progress: Progress = lambda done, total: None,
) -> Surface:
    """The loss at θ + a·d₁ + b·d₂ for a in `across` and b in `up`; `model` holds θ before and after.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> plane = ({"weight": torch.ones(1, 1)}, {"weight": torch.zeros(1, 1)})
    >>> surface(model, lambda m: m.weight.sum() - model.weight.sum(), plane, [0.0, 1.0], [0.0]).losses.shape
    torch.Size([1, 2])

    Args:
        model: the model, in the mode (train, eval) that `loss` needs.
        loss: maps the model to a scalar, without random numbers.
        plane: d₁ and d₂.
        across: coordinates a (W,).
        up: coordinates b (H,).
        progress: called after each of the H rows, with the number of finished rows and H.

    Raises:
        ValueError: `plane` belongs to the parameters of another model.

    Known limits: computes W · H losses, and needs four times the memory of the parameters.
    """
    parameters = trainable(model)
    for direction in plane:
        if direction.keys() != parameters.keys():
            raise ValueError(f"surface: the plane is of {sorted(direction)}, but the model has {sorted(parameters)}")
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses = torch.empty(len(up), len(across), dtype=torch.float64)
    try:
        for i, b in enumerate(up):
            row = {name: values + b * plane[1][name] for name, values in start.items()}
            for j, a in enumerate(across):
                for name, parameter in parameters.items():
                    parameter.copy_(torch.add(row[name], plane[0][name], alpha=a))
                losses[i, j] = float(loss(model))
            progress(i + 1, len(up))
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    places = [torch.as_tensor(list(values), dtype=torch.float64) for values in (across, up)]
    return Surface(places[0], places[1], losses)


def descend(
    model: nn.Module,
    loss: LossOf,
    plane: tuple[Direction, Direction],
    origin: Mapping[str, Tensor],
    *,
    rate: float,
    steps: int,
    rules: Sequence[Rule] = (),
) -> Descent:
    """Plain gradient descent on `model`, in place, projected onto a plane: θ ← θ − η·g with g after `rules`.

    Args:
        model: the starting point.
        loss: maps the model to a scalar.
        plane: the two directions.
        origin: the parameters at coordinates (0, 0).
        rate: η.
        steps: most steps; ends earlier if the loss or the gradient is not finite.
        rules: applied to the gradient before each step.
    """
    parameters = trainable(model)
    basis = torch.stack([torch.cat([part[name].flatten() for name in parameters]) for part in plane], 1)
    zero = torch.cat([origin[name].detach().flatten() for name in parameters])
    basis, zero = basis.cpu().double(), zero.cpu().double()
    places, losses, norms = [], [], []
    for step in range(steps + 1):
        theta = torch.cat([parameter.detach().flatten() for parameter in parameters.values()]).cpu().double()
        places.append(torch.linalg.lstsq(basis, (theta - zero)[:, None]).solution[:, 0])
        model.zero_grad(set_to_none=True)
        value = loss(model)
        losses.append(float(value.detach()))
        if step == steps or not math.isfinite(losses[-1]):
            break
        torch.autograd.backward(value)
        found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in found.values()]))))
        if not math.isfinite(norms[-1]):
            break
        for rule in rules:
            rule(model, step)
        with torch.no_grad():
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.sub_(rate * parameter.grad)
    return Descent(torch.stack(places), torch.tensor(losses), torch.tensor(norms))


def draw_surface(axes: Axes, found: Surface, x: str, y: str, unit: str = "loss") -> Colorbar:
    """Draw the surface in shades on a logarithmic scale, non-finite losses white; returns the colour bar."""
    good = found.losses[found.losses.isfinite() & (found.losses > 0)]
    low, high = (float(good.min()), float(good.max())) if len(good) else (0.1, 1.0)
    norm = LogNorm(max(low, high * 1e-4), high if high > low else low * 10)
    across, up, losses = found.across.numpy(), found.up.numpy(), found.losses.clamp_min(norm.vmin or 0).numpy()
    shades = axes.pcolormesh(across, up, losses, norm=norm, cmap=SHADES, shading="nearest", rasterized=True)
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(shades, ax=axes, pad=0.02)
    bar.set_label(unit, fontsize=15)
    bar.ax.tick_params(labelsize=13)
    axes.set_xlabel(x, fontsize=15)
    axes.set_ylabel(y, fontsize=15)
    axes.tick_params(labelsize=13)
    axes.set_xlim(float(across[0]), float(across[-1]))
    axes.set_ylim(float(up[0]), float(up[-1]))
    return bar


def say(axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], colour: str = "white") -> None:
    """Write text that is readable on any shade, `offset` points from `place`."""
    note = axes.annotate(
        text, place, xytext=offset, textcoords="offset points", color=colour, fontsize=16, fontweight="bold", zorder=7
    )
    note.set_path_effects([withStroke(linewidth=4, foreground="black")])


def plane_picture(
    model: nn.Module,
    loss: LossOf,
    to: Path,
    *,
    seed: int = 0,
    span: float = 1.0,
    side: int = 21,
    unit: str = "loss",
    progress: Progress = lambda done, total: None,
) -> str:
    """Draw the loss around a model in a random plane; returns the caption.

    Args:
        model: any model, in the mode (train, eval) that `loss` needs.
        loss: maps the model to a scalar, without random numbers.
        to: the PNG to write.
        seed: seed of the plane; see `random_plane`.
        span: half-width of the picture, in norms of the parameters.
        side: points along each side, odd, so that the middle one is the model; side² losses are computed.
        unit: label of the scale: "loss in nats per word".
        progress: see `surface`.

    Raises:
        ValueError: the side is even, or below 3.

    Known limit: the plane has two of very many directions; the loss may be steeper along others.
    """
    if side < 3 or side % 2 == 0:
        raise ValueError(f"plane_picture: side should be odd and ≥ 3, so that one place is the model, but is {side}")
    places = torch.linspace(-span, span, side).tolist()
    found = surface(model, loss, random_plane(model, seed), places, places, progress)
    figure = canvas(7.6, 9.0)
    axes = figure.subplots()
    x = "along one random direction (1: as far as the weights are from 0)"
    bar = draw_surface(axes, found, x, "along another", unit)
    _contours(axes, found, bar)
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    axes.plot(0, 0, marker="*", color="white", markeredgecolor="black", markersize=22)
    say(axes, "the model", (0, 0), (12, 8))
    save(figure, to)
    return _surface_words(found, span, unit)


def _surface_words(found: Surface, span: float, unit: str) -> str:
    """Sentences on the loss around the model, and whether a lower point was found."""
    losses, middle = found.losses, len(found.losses) // 2
    star = float(losses[middle, middle])
    ends = torch.cat([losses[middle, [0, -1]], losses[[0, -1], middle]])
    good = losses[losses.isfinite()]
    words = (
        f"The {unit} around the model (star: {star:.2f}) as all its weights move along two random directions: "
        f"{float(ends.min()):.2f} to {float(ends.max()):.2f} at a distance of {span:g}. "
    )
    if len(good) and float(good.min()) < star - 0.01 * abs(star):
        up, across = divmod(int(torch.where(losses.isfinite(), losses, math.inf).argmin()), losses.shape[1])
        at = f"({float(found.across[across]):.2g}, {float(found.up[up]):.2g})"
        words += f"The lowest point is elsewhere: {float(good.min()):.2f} at {at}. "
    return words + "Wide, even contours are easy to optimise; where they crowd together, a small step changes much."


def _contours(axes: Axes, found: Surface, bar: Colorbar) -> None:
    """Draw labelled contour lines, evenly spaced up to the 90 % quantile of the losses."""
    good = found.losses[found.losses.isfinite()]
    if len(good) == 0 or good.min() == good.max():
        return
    ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(float(good.min()), float(good.quantile(0.9)))
    levels = [float(tick) for tick in ticks if good.min() < tick < good.max()]
    reach = [0.92 * float(side.abs().max()) for side in (found.across, found.up)]
    lines = axes.contour(found.across, found.up, found.losses, levels=levels, colors="white", linewidths=1.5)
    for number in axes.clabel(lines, fontsize=14, fmt="%g"):
        number.set_path_effects([withStroke(linewidth=3, foreground="black")])
        x, y = number.get_position()
        number.set_visible(abs(x) < reach[0] and abs(y) < reach[1])  # the edge would cut it
    bar.set_ticks(levels, labels=[f"{level:g}" for level in levels])
    bar.ax.minorticks_off()
