"""Sensitivity of later outputs to one input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LogNorm
from numpy.typing import NDArray
from torch import Tensor

from everstep.cell import Cell, Layer
from everstep.look.style import SHADES, canvas, label, save
from everstep.look.trajectory import as_wide, check_causal, directional, follow, innermost, names, parts, ready, real
from everstep.wirings import Dropout, Identity
from everstep.wirings.stack import Stacked

DECADES = 6  # range of the colour scale, below the largest norm


@dataclass(frozen=True)
class Sensitivity:
    """‖∂y_t/∂x_s‖ of every layer at every step.

    Attributes:
        names: the names of the rows: layers from the lowest up, or leaves of their states.
        source: s, from 0.
        norms: (rows, time), the mean over the batch.
    """

    names: tuple[str, ...]
    source: int
    norms: NDArray[np.float64]


def sensitivity(
    layer: Layer, xs: Tensor, *, source: int = 0, leaves: bool = False, dtype: torch.dtype | None = None
) -> Sensitivity:
    """‖∂y_t/∂x_s‖_F of the outputs y_t of every layer and one input x_s, exact, by forward differentiation.

    Drawn over the unfolded graph, it gives the picture of Graves 2012 ("Supervised sequence labelling with recurrent
    neural networks", figures 4.1 and 4.4): shades fade in a plain network; in an LSTM they persist while gates allow.

    >>> from everstep import LSTM, Stack
    >>> sensitivity(Stack(LSTM(3, 5), LSTM(5, 4)), torch.randn(2, 20, 3)).norms.shape
    (2, 20)

    Args:
        layer: any cell or wiring, also acausal; a copy of it runs in eval mode. Each layer of a stack is a row.
        xs: (batch, time, input_size).
        source: s, from 0.
        leaves: whether to use the leaves of a cell's states (h, c, …) instead of its outputs.
        dtype: the dtype to compute in.

    Raises:
        TypeError: the inputs are not a floating-point tensor, or `leaves` is set for an acausal layer.
        ValueError: inputs of another shape, a source out of range, or a state that is not finite.

    Known limit: runs batch · input_size rows at once.
    """
    who = "sensitivity"
    if leaves:
        check_causal(who, layer)
    layer, xs = ready(who, layer, xs, dtype)
    batch, time, features = xs.shape
    if not 0 <= source < time:
        raise ValueError(f"{who}: source should lie in 0 … {time - 1} for {time} steps, but is {source}")
    wide = xs.repeat_interleave(features, 0)
    direction = torch.eye(features, dtype=xs.dtype, device=xs.device).repeat(batch, 1)
    called: list[str] = []

    def run(x: Tensor) -> tuple[Tensor, ...]:
        everything = torch.cat([wide[:, :source], x[:, None], wide[:, source + 1 :]], 1)
        rows = _rows(who, layer, everything, leaves)
        called[:] = rows
        return tuple(rows.values())

    with torch.no_grad():
        slopes = directional(run, (wide[:, source],), (direction,))
    norms = [
        as_wide(slope).view(batch, features, time, -1).square().sum((1, 3)).sqrt().mean(0).numpy(force=True)
        for slope in slopes
    ]
    return Sensitivity(tuple(called), source, np.stack(norms))


def _rows(who: str, layer: Layer, xs: Tensor, leaves: bool) -> dict[str, Tensor]:
    """The values of the rows of the picture, (batch, time, …) by name, lowest layer first."""
    if not isinstance(layer, Cell):
        return _outputs(layer, xs)
    layers = parts(layer)
    called = names(layers)
    moments = follow(who, layer, xs)
    rows: dict[str, Tensor] = {}
    for place, one in enumerate(layers):
        if leaves:
            for leaf, (name, _) in enumerate(real(moments[0][place].state)):
                states = [real(seen[place].state)[leaf][1].reshape(len(xs), -1) for seen in moments]
                rows[f"{called[place]}, {name}"] = torch.stack(states, 1)
        elif len(layers) == 1 or not isinstance(innermost(one), Identity | Dropout):
            rows[called[place]] = torch.stack([seen[place].output for seen in moments], 1)
    return rows


def _outputs(layer: Layer, xs: Tensor) -> dict[str, Tensor]:
    """The outputs of the layers for an acausal layer, which cannot be stepped."""
    layers = list(layer.sublayers()) if isinstance(layer, Stacked) else [layer]
    rows = {}
    for name, one in zip(names(layers), layers, strict=True):
        xs, _ = one(xs, backend="reference")
        rows[name] = xs
    return rows


def draw_sensitivity(result: Sensitivity, path: Path, unit: str = "step") -> str:
    """Draw the norms as a heat map over time × layer; returns the caption.

    Args:
        result: norms, shown relative to the largest, down to 10⁻⁶.
        path: the PNG to write.
        unit: the name of a step: "step", "character", "word".
    """
    largest = float(result.norms.max()) or 1.0
    rows, time = result.norms.shape
    figure = canvas(2.4 + 0.7 * rows)
    axes = figure.subplots()
    image = axes.imshow(
        np.maximum(result.norms / largest, 10.0**-DECADES),
        cmap=SHADES,
        norm=LogNorm(10.0**-DECADES, 1),
        aspect="auto",
        origin="lower",
        extent=(0.5, time + 0.5, -0.5, rows - 0.5),
        interpolation="nearest",
    )
    label(axes, f"time $t$, in {unit}s", "")
    axes.grid(visible=False)
    axes.set_yticks(range(rows), result.names)
    bar = figure.colorbar(image, ax=axes, location="top", aspect=60)
    bar.set_label(rf"$\|\partial y_t/\partial x_{{{result.source + 1}}}\|$, the largest being 1", fontsize=14)
    bar.ax.tick_params(labelsize=12)
    save(figure, path)
    last = ", ".join(
        f"{name} {value / largest:.0e}" for name, value in zip(result.names, result.norms[:, -1], strict=True)
    )
    return (
        f"How much of {unit} {result.source + 1} the output still depends on: bright is strongly, dark is not. "
        f"Left after {time - result.source - 1} {unit}s, as a share of the largest: {last}."
    )
