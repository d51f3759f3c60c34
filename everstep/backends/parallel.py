"""Affine cells by an associative scan: O(log T) depth, O(T) memory, gradients of every order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from everstep.abstract import AbstractAffine, AbstractCell
from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Refusal, Run
from everstep.native.plain_memory import transformed, version, watched
from everstep.state import State, valid

name = "parallel"


def prepare(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> Run | Refusal:
    """The run of a parallel scan, or the reason why the cell cannot be scanned."""
    reason = _refusal(cell, xs)
    return Refusal(reason) if reason is not None else lambda state: _run(cell, xs, state, lengths, resets)


def _refusal(cell: AbstractCell, xs: Any) -> str | None:
    """The reason why this cell cannot be scanned in parallel, or None."""
    if not isinstance(cell, AbstractAffine):
        return "its step is not declared affine in the state (see everstep.Affine)"
    if not cell.steps_as_declared():
        return f"{type(cell).__name__} has a step of its own beside its coefficients"
    if not isinstance(xs, Tensor):
        return "its steps take more than one input"
    return transformed() or (None if cell.__module__.startswith("everstep.") else _effect(cell, xs))


def _effect(cell: AbstractAffine, xs: Tensor) -> str | None:
    """A side effect of the step that a parallel scan would not repeat, or None."""
    return None if watched() else fused.effect(cell, xs)


def slower(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
    """Below 4 steps the loop is faster (a training step on a CPU)."""
    return "fewer than 4 steps: the loop is measured to be faster" if xs.shape[1] < 4 else None


def _run(
    cell: AbstractCell, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """h_t = a_t ∘ h_{t-1} + b_t with all coefficients at once; a = 1, b = 0 beyond a row's length, a = 0 at a reset."""
    assert isinstance(cell, AbstractAffine)
    batch, time = xs.shape[:2]
    live = None
    if lengths is not None:
        live = valid(lengths, time)[..., None]
        xs = torch.where(live, xs, 0)
    flat = xs.flatten(0, 1)
    with _unwritten(cell, "coefficients", flat):
        found = cell.coefficients(flat)
    a, b = (part.to(state.dtype).unflatten(0, (batch, time)) for part in found)
    if resets is not None:
        again = resets[..., None]
        b = torch.where(again, a * cell.initial_state(batch, xs)[:, None] + b, b)
        a = torch.where(again, 0, a)
    if live is not None:
        a, b = torch.where(live, a, 1), torch.where(live, b, 0)
    hs = linear_scan(a, b, state)
    with _unwritten(cell, "output", flat, hs):
        ys = cell.output(hs.flatten(0, 1), flat).unflatten(0, (batch, time))
    return ys if live is None else torch.where(live, ys, 0), hs[:, -1].clone()


@contextmanager
def _unwritten(cell: AbstractAffine, method: str, *lent: Tensor) -> Iterator[None]:
    """Raise if these tensors are overwritten within the block."""
    before = [version(tensor) for tensor in lent]
    yield
    if [version(tensor) for tensor in lent] != before:
        raise RuntimeError(
            f"{cell._get_name()}.{method} changes its arguments in place, which are shared: make a new tensor instead"
        )


def linear_scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """h_t = a_t ∘ h_{t-1} + b_t for t = 0 … T-1, with h_{-1} = `start`.

    Args:
        a, b: (batch, time, ...) with time ≥ 1.
        start: (batch, ...).

    Returns:
        h, (batch, time, ...).

    By recursive doubling on pairs of steps (Brent & Kung 1982): 2T products and sums, O(log T) deep.
    """
    return _LinearScan.apply(a, b, start)  # type: ignore[no-any-return]


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor) -> Tensor:
        first = torch.addcmul(b[:, :1], a[:, :1], start[:, None])
        h = _inclusive(a, torch.cat([first, b[:, 1:]], 1))
        ctx.save_for_backward(a, start, h)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """λ_t = g_t + a_{t+1} ∘ λ_{t+1}, the same recurrence from the end; ∂a_t = λ_t ∘ h_{t-1}, ∂b_t = λ_t."""
        a, start, h = ctx.saved_tensors
        # the first coefficient of the reversed run multiplies a zero state, so its value does not matter
        ahead = torch.cat([a[:, :1], a.flip(1)[:, :-1]], 1)
        adjoint = linear_scan(ahead, grads[0].flip(1), torch.zeros_like(start)).flip(1)
        before = torch.cat([start[:, None], h[:, :-1]], 1)
        return adjoint * before, adjoint, adjoint[:, 0] * a[:, 0]


def _inclusive(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t ∘ h_{t-1} + b_t from a zero state: pairs of steps are merged, solved recursively, and split again."""
    time = b.shape[1]
    if time == 1:
        return b
    half = time // 2
    left_b = b[:, 0 : 2 * half : 2]
    right_a, right_b = a[:, 1 : 2 * half : 2], b[:, 1 : 2 * half : 2]
    odd = _inclusive(right_a * a[:, 0 : 2 * half : 2], torch.addcmul(right_b, right_a, left_b))
    h = torch.empty_like(b)
    h[:, 1 : 2 * half : 2] = odd
    h[:, 0] = b[:, 0]
    if time > 2:
        count = (time - 1) // 2
        h[:, 2::2] = torch.addcmul(b[:, 2::2], a[:, 2::2], odd[:, :count])
    return h
