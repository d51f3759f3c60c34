"""Where the heads of an external memory are, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from everstep.look.style import SHADES, canvas, save
from everstep.look.trajectory import ready
from everstep.memory import DNC, NTM

_FAINT = 0.05  # places whose weights stay below are left out at the far end


def head_weights(machine: NTM | DNC, xs: Tensor) -> dict[str, NDArray[np.floating]]:
    """The weights of the heads over the places of the first sequence: "writes" and "reads", (time, heads, places) each.

    >>> import everstep as es
    >>> weights = head_weights(es.NTM(es.GRU(3 + 4, 8), places=16, width=4), torch.zeros(1, 7, 3))
    >>> weights["reads"].shape
    (7, 1, 16)

    Args:
        machine: a cell with a memory of places.
        xs: (batch, time, features).

    Raises:
        TypeError: the machine has no such memory, or xs is not a floating-point tensor.
        ValueError: xs of another shape.
    """
    if not isinstance(machine, NTM | DNC):
        raise TypeError(f"head_weights: machine should be an NTM or a DNC, but is {type(machine).__name__}")
    copied: Any
    copied, xs = ready("head_weights", machine, xs, None, shortest=1)
    state = copied.initial_state(1, xs)
    found: dict[str, list[Tensor]] = {"writes": [], "reads": []}
    with torch.no_grad():
        for x in xs[:1].unbind(1):
            _, state = copied.step(x, state)
            for name, weights in copied.heads(state).items():
                found[name].append(weights[0])
    return {name: torch.stack(steps).float().cpu().numpy() for name, steps in found.items()}


def draw_heads(
    weights: Mapping[str, NDArray[np.floating]], shown: Mapping[str, NDArray[np.floating]], path: Path
) -> None:
    """Draw signals above the places that every head writes or reads (after Graves 2014, figure 6).

    Args:
        weights: what `head_weights` returns.
        shown: signals by name, (time, features) each, of the same steps: inputs, outputs.
        path: the PNG.
    """
    used = np.flatnonzero(np.concatenate([w.max((0, 1))[None] for w in weights.values()]).max(0) > _FAINT)
    places = int(used[-1]) + 2 if used.size else 1
    rows = [(name, signal.T) for name, signal in shown.items()]
    for name, steps in weights.items():
        several = steps.shape[1] > 1
        rows += [(f"{name} {k + 1}" if several else name, steps[:, k, :places].T) for k in range(steps.shape[1])]
    heights = [0.9 if name in shown else 2.4 for name, _ in rows]
    figure = canvas(1 + sum(heights))
    for axes, (name, values) in zip(
        figure.subplots(len(rows), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0], rows, strict=True
    ):
        image = axes.imshow(values, aspect="auto", cmap=SHADES, interpolation="nearest", origin="lower", vmin=0, vmax=1)
        axes.set_ylabel(name if name in shown else f"{name}:\nplace", fontsize=13)
        axes.yaxis.set_major_locator(MaxNLocator(3 if name in shown else 6, integer=True))
        axes.tick_params(labelsize=12)
    axes.set_xlabel("step", fontsize=14)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(image, ax=figure.axes, fraction=0.03, pad=0.01)
    bar.ax.tick_params(labelsize=12)
    save(figure, path)
