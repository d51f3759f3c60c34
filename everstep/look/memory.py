"""Effective memory length, defined by the reach of gradients or by the context that outputs need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from everstep.cell import Layer
from everstep.look.flow import Flow
from everstep.look.style import COLOURS, GREY, canvas, label, legend, save
from everstep.look.trajectory import check_causal, ready

TargetLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs (1, time, features) and targets (1, time) to the loss of each step, (1, time)."""
HELD = 2**24  # most output values in memory at once


def memory_by_gradient(flow: Flow, fraction: float = 1 / math.e) -> dict[str, float]:
    """The smallest lag at which the mean gradient flow is at most `fraction` of its value at lag 0.

    In steps, for each curve; `inf` if no measured lag is long enough. For an exponential decay, 1/e gives its time
    constant.

    >>> flow = Flow(("h",), np.arange(4), 0.5 ** np.arange(4).reshape(1, 1, 4))
    >>> memory_by_gradient(flow), memory_by_gradient(flow, 0.01)
    ({'h': 2.0}, {'h': inf})

    Raises:
        ValueError: the fraction is not in (0, 1), or a curve is 0 at lag 0.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"memory_by_gradient: fraction should lie between 0 and 1, but is {fraction}")
    found = {}
    for name, mean in zip(flow.names, flow.mean, strict=True):
        if not mean[0] > 0:
            raise ValueError(
                f"memory_by_gradient: the loss reads nothing of {name} at lag 0, so no share of it is known"
            )
        below = np.flatnonzero(mean <= fraction * mean[0])
        found[name] = float(flow.lags[below[0]]) if below.size else math.inf
    return found


@dataclass(frozen=True)
class ContextCurve:
    """The effect of knowing only the last n inputs.

    Attributes:
        lengths: n = 1 … N.
        values: (N,), the mean loss with n inputs, or the mean relative change of the outputs.
        full: the value with all inputs: the loss, or 0 for the change.
        unit: the reference of ε: the full loss, or 1 for the change, which is relative already.
        count: number of steps averaged in each value.
    """

    lengths: NDArray[np.int64]
    values: NDArray[np.float64]
    full: float
    unit: float
    count: int

    def memory(self, epsilon: float = 0.01) -> float:
        """The smallest n from which on values stay within ε·unit of `full`; `inf` if none.

        Source: Khandelwal 2018, "Sharp nearby, fuzzy far away", with ε = 1 % of perplexity.
        """
        near = abs(self.values - self.full) <= epsilon * self.unit
        beyond = np.flatnonzero(~near)
        place = int(beyond[-1]) + 1 if beyond.size else 0
        return float(self.lengths[place]) if place < len(near) else math.inf


def context_loss(
    cell: Layer, xs: Tensor, targets: Tensor, loss: TargetLoss, *, longest: int, samples: int = 256
) -> ContextCurve:
    """The mean loss of the same targets if the cell starts in its initial state n inputs before, for n = 1 … `longest`.

    Args:
        cell: any cell or causal wiring; a copy of it runs in eval mode.
        xs: (1, time, input_size), one row, which is the full context.
        targets: (1, time).
        loss: maps outputs and targets to the loss of each step.
        longest: N.
        samples: number of targets, the last steps of the row; fewer if fewer steps follow the first N.

    Raises:
        TypeError: the layer is acausal, or the inputs are not a floating-point tensor.
        ValueError: inputs of another shape, no more steps than `longest`, or a loss that is not finite.

    Known limit: costs samples + N runs of N steps.
    """
    if tuple(targets.shape) != tuple(xs.shape[:2]):
        raise ValueError(
            f"context_loss: targets should have the shape {tuple(xs.shape[:2])} of xs without features, but have "
            f"{tuple(targets.shape)}"
        )

    def mean(ys: Tensor, full: Tensor) -> float:
        losses = loss(ys[None], targets[:, -len(ys) :])
        if losses.shape != (1, len(ys)):
            raise ValueError(f"context_loss: loss should give {(1, len(ys))}, but gave {tuple(losses.shape)}")
        return float(losses.cpu().double().mean())

    values, full = _by_context("context_loss", cell, xs, longest, samples, mean)
    return ContextCurve(np.arange(1, longest + 1), values, full, full, _ends(xs, longest, samples))


def context_change(cell: Layer, xs: Tensor, *, longest: int, samples: int = 256) -> ContextCurve:
    """The mean change ‖y_t(n) − y_t‖ / ‖y_t‖ of the outputs if the cell starts in its initial state n inputs before.

    Norms are root mean squares over the last `samples` steps; for the other arguments see `context_loss`.

    >>> from everstep import Window
    >>> context_change(Window(2, k=5), torch.randn(1, 40, 2), longest=10).memory()
    5.0

    Raises:
        TypeError, ValueError: as `context_loss`.
    """

    def change(ys: Tensor, full: Tensor) -> float:
        norms = [values.cpu().double().norm() for values in (ys - full, full)]
        return float(norms[0] / norms[1].clamp_min(1e-300))

    values, _ = _by_context("context_change", cell, xs, longest, samples, change)
    return ContextCurve(np.arange(1, longest + 1), values, 0.0, 1.0, _ends(xs, longest, samples))


def _ends(xs: Tensor, longest: int, samples: int) -> int:
    """The number of last steps with `longest` inputs before them, at most `samples`."""
    return min(max(samples, 1), xs.shape[1] - longest)


@torch.no_grad()
def _by_context(
    who: str, cell: Layer, xs: Tensor, longest: int, samples: int, measure: Callable[[Tensor, Tensor], float]
) -> tuple[NDArray[np.float64], float]:
    """`measure` of the outputs at the last steps, beside those with full context: for n = 1 … N, and for full context.

    Every window of N inputs is one row, so that step n of all rows holds each target once, with n inputs known.
    """
    cell, xs = ready(who, check_causal(who, cell), xs, None)
    time = xs.shape[1]
    if len(xs) != 1:
        raise ValueError(f"{who}: one row is expected, but xs has {len(xs)}; give xs[:1]")
    if not 1 <= longest < time:
        raise ValueError(f"{who}: longest should lie in 1 … {time - 1} for {time} steps, but is {longest}")
    count = _ends(xs, longest, samples)
    full = cell(xs)[0][0, -count:]
    rows = count + longest - 1
    stretches = F.pad(xs[0, time - rows :], (0, 0, 0, longest - 1)).unfold(0, longest, 1).transpose(1, 2)
    state = cell.initial_state(rows, xs)
    piece = max(1, HELD // (rows * cell.output_size))
    values: list[float] = []
    for start in range(0, longest, piece):
        ys, state = cell(stretches[:, start : start + piece].contiguous(), state)
        for n, outputs in enumerate(ys.unbind(1), start + 1):
            values.append(measure(outputs[longest - n : longest - n + count], full))
    found = np.array([*values, measure(full, full)])
    if not np.isfinite(found).all():
        raise ValueError(f"{who}: a loss or an output is not finite; do the run and its inputs stay finite?")
    return found[:-1], float(found[-1])


def draw_context(curve: ContextCurve, path: Path, unit: str = "step", what: str = "loss in nats") -> str:
    """Draw the curve with the memory length marked; returns the caption.

    Args:
        curve: a curve of `context_loss` or `context_change`.
        path: the PNG to write.
        unit: the name of a step: "step", "character", "word".
        what: the name of the measured value, for the axis.
    """
    memory = curve.memory()
    figure = canvas(5.6)
    axes = figure.subplots()
    axes.plot(curve.lengths, curve.values, color=COLOURS[0], linewidth=2.6, label=f"the last n {unit}s")
    axes.axhline(curve.full, color=GREY, linewidth=1.5, linestyle="--", label="full context")
    found = (
        f"{memory:.0f} {unit}{'s' * (memory != 1)}"
        if math.isfinite(memory)
        else f"more than {curve.lengths[-1]} {unit}s"
    )
    if math.isfinite(memory):
        axes.axvline(memory, color=COLOURS[1], linewidth=2.2, label=f"within 1 % from {found} on")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(8))
    mean = f"{what},\nmean over {curve.count} {unit}{'s' * (curve.count != 1)}"
    label(axes, f"context $n$: {unit}s that the model sees", mean)
    legend(axes)
    save(figure, path)
    return f"{_seen(curve, unit, what)} Effective memory by context, to within 1 %: {found}."


def _seen(curve: ContextCurve, unit: str, what: str) -> str:
    """A sentence on the effect of missing context, from the ends of the curve."""
    first, last, longest = float(curve.values[0]), float(curve.values[-1]), curve.lengths[-1]
    many = f"{curve.count} {unit}s" if curve.count != 1 else f"one {unit}"
    words = (
        f"The {what} when the model sees the last n {unit}s only, mean over {many}: {first:.3g} with one, {last:.3g} "
        f"with {longest}, {curve.full:.3g} with all."
    )
    if (float(curve.values.min()) - curve.full) < -0.01 * curve.unit:
        best = int(curve.lengths[curve.values.argmin()])
        words += f" Less context does better: {float(curve.values.min()):.3g} with {best}."
    return words
