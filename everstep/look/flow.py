"""Gradient flow: the norm of a loss gradient after propagation back through time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.cell import Layer
from everstep.look.style import COLOURS, DASHES, canvas, label, legend, save
from everstep.look.trajectory import Moment, as_wide, check_causal, follow, names, parts, ready, real, remembering
from everstep.state import State

StepLoss = Callable[[Tensor], Tensor]
"""Maps outputs (batch, time, features) to the loss of each step (batch, time), which depends on its output alone."""


@dataclass(frozen=True)
class Flow:
    """‖∂L_t/∂h_k‖ against the lag t − k.

    Attributes:
        names: the names of the curves: layers, or leaves of their states.
        lags: 0 … K, in steps.
        norms: (curves, samples, K + 1), with one sample for each row and each t.
    """

    names: tuple[str, ...]
    lags: NDArray[np.int64]
    norms: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean over the samples, (curves, K + 1)."""
        return np.asarray(self.norms.mean(1))


def gradient_flow(
    cell: Layer,
    xs: Tensor,
    *,
    lags: int | None = None,
    loss: StepLoss | None = None,
    state: State = None,
    samples: int = 16,
    leaves: bool = False,
    dtype: torch.dtype | None = None,
) -> Flow:
    """‖∂L_t/∂h_k‖₂ for lags t − k = 0 … K, exactly, with h_k the state of a layer before step k + 1.

    h_k concatenates all leaves of a layer's state; the states of the other layers of a stack at k are held fixed. The
    norm vanishes or explodes like the products of the step's Jacobians (Hochreiter 1991; Bengio 1994; Pascanu 2013). At
    lag 0 it is the gradient at each leaf as computed within step t.

    >>> from everstep import LSTM
    >>> flow = gradient_flow(LSTM(3, 5), torch.randn(2, 40, 3), lags=30)
    >>> flow.mean.shape
    (1, 31)

    Args:
        cell: any cell or causal wiring; a copy of it runs in eval mode. Each layer of a `Stack` gives a curve.
        xs: (batch, time, input_size).
        lags: K; half of the steps if None.
        loss: maps outputs to the loss of each step; if None, v·y_t with a fixed random unit vector v.
        state: the state to start from; the initial state if None.
        samples: number of t, spread evenly over the steps K + 1 … T.
        leaves: whether to give a curve for each leaf of the state (h, c, …), instead of one per layer.
        dtype: the dtype to compute in; gradients underflow below 1e-300 in `torch.float64`, below 1e-38 in float32.

    Raises:
        TypeError: the layer is acausal, or the inputs are not a floating-point tensor.
        ValueError: inputs of another shape, lags not in 1 … T − 1, a cell without a state, a loss of another shape,
            or a state that is not finite.

    Known limit: all T steps are stored for the backward pass, as in training.
    """
    who = "gradient_flow"
    body, xs = ready(who, check_causal(who, cell), xs, dtype)
    time = xs.shape[1]
    lags = time // 2 if lags is None else lags
    if not 1 <= lags < time:
        raise ValueError(f"{who}: lags should lie in 1 … {time - 1} for {time} steps, but is {lags}")
    layers = parts(body)
    kept = remembering(layers, xs)
    if not kept:
        raise ValueError(f"{who}: {type(cell).__name__} has no state that a gradient could flow through")
    # inputs require a gradient, so that a state that depends on them alone is in the graph
    moments = follow(who, body, xs.requires_grad_(), state)
    ends = np.unique(np.linspace(lags, time - 1, min(max(samples, 1), time - lags)).round().astype(int))
    heads = _loss_gradients(torch.stack([seen[-1].output for seen in moments], 1), loss)
    called = names(layers)
    curves: dict[str, list[NDArray[np.float64]]] = {}
    for end in ends:
        window = moments[end - lags : end + 1][::-1]
        for name, norms in _norms(moments[end][-1].output, heads[:, end], window, kept, called, leaves).items():
            curves.setdefault(name, []).append(norms)
    norms = np.stack([np.concatenate(found, 0) for found in curves.values()])
    return Flow(tuple(curves), np.arange(lags + 1), norms)


def _loss_gradients(ys: Tensor, loss: StepLoss | None) -> Tensor:
    """∂L_t/∂y_t for every step: (batch, time, features)."""
    ys = ys.detach().requires_grad_()
    if loss is None:
        direction = torch.randn(ys.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        losses = ys @ (direction / direction.norm()).to(ys)
    else:
        losses = loss(ys)
    if losses.shape != ys.shape[:2]:
        raise ValueError(
            f"gradient_flow: loss should give (batch, time) = {tuple(ys.shape[:2])}, but gave {tuple(losses.shape)}"
        )
    return torch.autograd.grad(losses.sum(), ys)[0]


def _norms(
    y: Tensor, head: Tensor, window: list[list[Moment]], kept: list[int], called: list[str], leaves: bool
) -> dict[str, NDArray[np.float64]]:
    """The norms (batch, lags + 1) of the gradient at each layer or leaf, from the last step of the window backwards."""
    places = [(place, name) for place in kept for name, _ in real(window[0][place].state)]
    nodes = [leaf for place in kept for _, leaf in real(window[0][place].made)]
    nodes += [leaf for seen in window[1:] for place in kept for _, leaf in real(seen[place].state)]
    live = [node for node in nodes if node.requires_grad]
    found = iter(torch.autograd.grad(y, live, head, retain_graph=True, allow_unused=True))
    gradients = [next(found) if node.requires_grad else None for node in nodes]
    total: dict[str, NDArray[np.float64]] = {}
    for column, (place, leaf) in enumerate(places):
        mine = zip(nodes[column :: len(places)], gradients[column :: len(places)], strict=True)
        rows = [_norm(torch.zeros_like(node) if gradient is None else gradient) for node, gradient in mine]
        name = f"{called[place]}, {leaf}" if leaves else called[place]
        norms = torch.stack(rows, 1).numpy(force=True)
        total[name] = np.hypot(total[name], norms) if name in total else norms
    return total


def _norm(gradient: Tensor) -> Tensor:
    """The norm of each row (batch,) in float64; scaled, since squares of small numbers may underflow."""
    rows = as_wide(gradient).reshape(len(gradient), -1)
    limits = torch.finfo(rows.dtype)
    largest = rows.abs().amax(1, keepdim=True).clamp(limits.tiny, limits.max)
    shares: Tensor = torch.linalg.vector_norm(rows / largest, dim=1)
    return largest[:, 0] * shares


def draw_flow(flow: Flow | Mapping[str, Flow], path: Path, unit: str = "step") -> str:
    """Draw mean norms against the lag on a logarithmic scale; returns the caption.

    Args:
        flow: one flow, or several by the name of their model, drawn on the same axes.
        path: the PNG to write.
        unit: the name of a step: "step", "character", "word".
    """
    flows = flow if isinstance(flow, Mapping) else {"": flow}
    curves = {
        f"{model} {name if len(one.names) > 1 or not model else ''}".strip(): (one.lags, mean / (mean[0] or 1.0))
        for model, one in flows.items()
        for name, mean in zip(one.names, one.mean, strict=True)
    }
    figure = canvas(5.6)
    axes = figure.subplots()
    for place, (name, (lags, mean)) in enumerate(curves.items()):
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
        shown = np.where(mean > 0, mean, np.nan)
        axes.plot(lags, shown, linewidth=2.6, label=name, **style)  # type: ignore[arg-type]
    axes.set_yscale("log")
    label(
        axes,
        f"lag $t - k$, in {unit}s",
        r"gradient left, $\|\partial L_t/\partial h_k\|\,/\,\|\partial L_t/\partial h_t\|$",
    )
    legend(axes)
    save(figure, path)
    ends = "; ".join(
        f"{name}: {mean[-1]:.1e} after {lags[-1]} {unit}s ({_fate(mean[-1])})" for name, (lags, mean) in curves.items()
    )
    counts = " or ".join(str(count) for count in sorted({one.norms.shape[1] for one in flows.values()}))
    return (
        f"The share of a loss's gradient that is left some steps back, mean of {counts}; a straight line means a "
        f"constant rate of forgetting. {ends}."
    )


def _fate(share: float) -> str:
    """A description of a gradient of which `share` is left."""
    if not math.isfinite(share):
        return "overflow"
    bounds = ((0.01, "it vanishes"), (0.5, "it fades"), (2, "it is kept"), (100, "it grows"))
    return next((words for bound, words in bounds if share < bound), "it explodes")
