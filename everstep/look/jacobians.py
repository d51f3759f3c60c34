"""Jacobians of a cell's step along a run, and Lyapunov exponents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.cell import Cell, Layer
from everstep.look.trajectory import (
    Moment,
    check_causal,
    check_finite,
    directional,
    names,
    parts,
    plain_stack,
    ready,
    real,
    remembering,
    walk,
)
from everstep.state import State, leaves, map_state, unflatten

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Jacobians:
    """The Jacobians J_t = ∂s_t/∂s_{t-1} of one layer at some steps; s concatenates all leaves of its state.

    Attributes:
        steps: t, counted from 1.
        matrices: (steps, n, n).
    """

    steps: NDArray[np.int64]
    matrices: Real

    @property
    def eigenvalues(self) -> NDArray[np.complex128]:
        """The eigenvalues, (steps, n), complex."""
        return np.asarray(np.linalg.eigvals(self.matrices), dtype=np.complex128)

    @property
    def singular_values(self) -> Real:
        """(steps, n), largest first: the factors by which one step stretches small differences."""
        return np.asarray(np.linalg.svd(self.matrices, compute_uv=False))


def step_jacobians(
    cell: Layer, xs: Tensor, *, samples: int | None = None, state: State = None, dtype: torch.dtype | None = None
) -> dict[str, Jacobians]:
    """The exact Jacobian of the step, ∂s_t/∂s_{t-1}, along a run, for each layer that has a state.

    A layer of a stack is differentiated with its input held fixed. Its matrix is a diagonal block of the stack's
    Jacobian, and the eigenvalues of all blocks are those of the stack.

    >>> from everstep import LSTM
    >>> step_jacobians(LSTM(3, 5), torch.randn(1, 20, 3))["LSTM"].matrices.shape
    (20, 10, 10)

    Args:
        cell: any cell or causal wiring; a copy of it runs in eval mode.
        xs: (1, time, input_size), one row.
        samples: number of steps, evenly spread; all steps if None.
        state: the state to start from; the initial state if None.
        dtype: the dtype to compute in.

    Raises:
        TypeError: the layer is acausal, or the inputs are not a floating-point tensor.
        ValueError: inputs of another shape, a cell without a state, or a state that is not finite.
    """
    who = "step_jacobians"
    body, xs = ready(who, check_causal(who, cell), xs, dtype, shortest=1)
    state = _one_row(who, body, xs, state)
    layers, time = parts(body), xs.shape[1]
    called, kept = names(layers), remembering(layers, xs)
    steps = np.unique(np.linspace(1, time, min(samples or time, time)).round().astype(np.int64))
    found: dict[str, list[Real]] = {called[place]: [] for place in kept}
    with torch.no_grad():
        for step, x in enumerate(xs.unbind(1), 1):
            before = _by_layer(body, state)
            seen: list[Moment] = []
            _, state = walk(body, x, state, seen)
            check_finite(who, called, seen, step, time)
            for place in kept if step in steps else ():
                below = x if place == 0 else seen[place - 1].output
                columns = push(layers[place], below, before[place], torch.eye(width(before[place])).to(x))
                found[called[place]].append(columns.cpu().double().numpy(force=True).T)
    return {name: Jacobians(steps, np.stack(matrices)) for name, matrices in found.items()}


@dataclass(frozen=True)
class Exponents:
    """Lyapunov exponents: mean growth rates of small differences of the state, in nats per step.

    Attributes:
        values: (k,), largest first; −inf for a direction that the state forgets at once.
        history: (steps, k): the estimate after every step, in the order of the directions.
    """

    values: Real
    history: Real


def lyapunov_exponents(
    cell: Layer,
    xs: Tensor,
    *,
    count: int | None = None,
    warm_up: int = 0,
    state: State = None,
    dtype: torch.dtype | None = None,
) -> Exponents:
    """λ_i = lim (1/T) Σ_t ln |R_t,ii| of a cell driven by given inputs, with J_t Q_{t-1} = Q_t R_t (QR each step).

    If the largest is negative, runs on the same inputs from different states converge, by a factor e in 1/|λ| steps; if
    positive, the dynamics are chaotic (Benettin 1980; for recurrent networks Engelken 2020).

    >>> class Halve(es.Cell):
    ...     def step(self, x, h):
    ...         return h / 2, h / 2
    >>> lyapunov_exponents(Halve(1, 1), torch.zeros(1, 10, 1)).values.round(4).tolist()
    [-0.6931]

    Args:
        cell: any cell or causal wiring; a copy of it runs in eval mode.
        xs: (1, time, input_size), one row.
        count: number of exponents, from the largest; all if None.
        warm_up: first steps, which align the directions but are not counted.
        state: the state to start from; the initial state if None.
        dtype: the dtype to compute in.

    Raises:
        TypeError: the layer is acausal, or the inputs are not a floating-point tensor.
        ValueError: inputs of another shape, a count or a warm_up out of range, a cell without a state, or a state that
            is not finite.

    Known limits: the mean is over finite time, so that the error falls as 1/T at best. All n exponents cost n
    directional derivatives per step. A leaf that counts steps, as some cells have, gives an exponent of 0.
    """
    who = "lyapunov_exponents"
    body, xs = ready(who, check_causal(who, cell), xs, dtype)
    state = _one_row(who, body, xs, state)
    size, time = width(state), xs.shape[1]
    count = size if count is None else count
    if not 1 <= count <= size:
        raise ValueError(f"{who}: count should lie in 1 … {size}, the numbers in the state, but is {count}")
    if not 0 <= warm_up < time:
        raise ValueError(f"{who}: warm_up should lie in 0 … {time - 1} for {time} steps, but is {warm_up}")
    start = torch.randn(size, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = torch.linalg.qr(start.to(xs))[0]
    called = names(parts(body))
    rates = []
    with torch.no_grad():
        for step, x in enumerate(xs.unbind(1), 1):
            pushed = push(body, x, state, frame.T).T
            seen: list[Moment] = []
            _, state = walk(body, x, state, seen)
            check_finite(who, called, seen, step, time)
            frame, triangle = torch.linalg.qr(pushed)
            if step > warm_up:
                rates.append(triangle.diagonal().abs().cpu().double().log().numpy(force=True))
    history = np.cumsum(rates, 0) / np.arange(1, len(rates) + 1)[:, None]
    return Exponents(np.sort(history[-1])[::-1], history)


def push(cell: Layer, x: Tensor, state: State, directions: Tensor) -> Tensor:
    """J v for each row v of `directions` (rows, n), with J = ∂s_t/∂s_{t-1} at x (1, features) and `state`."""
    assert isinstance(cell, Cell)
    rows = len(directions)
    step = cell.step
    wide = map_state(lambda leaf: leaf.repeat_interleave(rows, 0), state)
    moving = [name for name, _ in real(state)]
    fixed = [leaf for name, leaf in leaves(wide)]
    at = [place for place, (name, _) in enumerate(leaves(state)) if name in moving]

    def advance(*values: Tensor) -> tuple[Tensor, ...]:
        full = list(fixed)
        for place, value in zip(at, values, strict=True):
            full[place] = value
        _, new = step(x.expand(rows, -1), unflatten(state, full))
        return tuple(leaf for _, leaf in real(new))

    shapes = [fixed[place].shape for place in at]
    slices = directions.split([shape[1:].numel() for shape in shapes], 1)
    tangents = tuple(part.reshape(shape) for part, shape in zip(slices, shapes, strict=True))
    slopes = directional(advance, tuple(fixed[place] for place in at), tangents)
    return torch.cat([slope.reshape(rows, -1) for slope in slopes], 1)


def width(state: State) -> int:
    """The number of real values in one row of a state."""
    return sum(leaf[0].numel() for _, leaf in real(state))


def _by_layer(layer: Layer, state: State) -> list[State]:
    """The states of the layers `parts(layer)`, in order."""
    if not plain_stack(layer):
        return [state]
    return [part for child, own in zip(layer.sublayers(), state, strict=True) for part in _by_layer(child, own)]


def _one_row(who: str, cell: Cell, xs: Tensor, state: State) -> State:
    """The initial state; raises if there is more than one row, or no state."""
    if len(xs) != 1:
        raise ValueError(f"{who}: one row is expected, as each has a run of its own, but xs has {len(xs)}; give xs[:1]")
    state = cell.initial_state(1, xs) if state is None else state
    if not real(state):
        raise ValueError(f"{who}: {type(cell).__name__} has no state, and so no Jacobian ∂s_t/∂s_{{t-1}}")
    return state
