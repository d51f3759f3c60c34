"""Dynamic evaluation: a model that goes on learning from the text it has been scored on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from everstep.data.batches import Batches, TokenBatch
from everstep.learn.bptt import narrow
from everstep.networks.token_model import TokenModel
from everstep.parameters import device_of
from everstep.state import State, detach

EPSILON = 0.001
"""ε beside √MS, where gradients are means over the targets of a segment."""


@dataclass(frozen=True)
class DynamicRule:
    """The update after each segment.

    Attributes:
        rate: η.
        decay: λ, the strength of the way back to the trained weights.
        steps: targets in a segment.
    """

    rate: float
    decay: float = 0.02
    steps: int = 10


def mean_squares(model: TokenModel, batches: Batches[TokenBatch], steps: int, most: int = 200) -> list[Tensor]:
    """√ of the mean square of the gradient of each parameter, over at most `most` segments of training batches."""
    model.eval()
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    count = min(most, len(batches))
    for index in range(count):
        batch = batches.batch(0, index)
        first = batch.context  # the steps before it have no loss
        piece = narrow(batch, first, min(first + steps, batch.inputs.shape[1]))
        for square, gradient in zip(squares, _gradient(model, piece, None)[0], strict=True):
            square += gradient**2 / count
    return [square.sqrt() for square in squares]


def dynamic_nats(
    trained: TokenModel,
    batches: Batches[TokenBatch],
    rms: list[Tensor],
    rule: DynamicRule,
    most: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, int]:
    """-Σ log p of a text by a model that is updated after each segment, and the number of targets.

    θ ← θ - η g / (√MS + ε) + λ (θ₀ - θ) √MS / mean(√MS), where g is the gradient of the mean -log p of the segment just
    scored, MS the mean square of the gradient in training, and θ₀ the trained weights (Krause, Kahembwe, Murray &
    Renals 2018). λ √MS / mean(√MS) is at most 1. Each target is scored before the model learns from it.

    Args:
        trained: a copy of it is updated.
        batches: one lane with carried state.
        rms: the result of `mean_squares`.
        rule: η, λ and the length of a segment.
        most: number of first targets to read; None: all.
        progress: called with batches done and their number.
    """
    model = copy.deepcopy(trained).eval()
    average = sum(float(part.sum()) for part in rms) / sum(part.numel() for part in rms)
    back = [(rule.decay * part / average).clamp_max(1) for part in rms]
    rates = [rule.rate / (part + EPSILON) for part in rms]
    start = [parameter.detach().clone() for parameter in model.parameters()]
    nats, count, state = 0.0, 0, None
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        for first in range(0, batch.inputs.shape[1], rule.steps):
            piece = narrow(batch, first, min(first + rule.steps, batch.inputs.shape[1]))
            gradient, loss, state = _gradient(model, piece, state)
            nats, count = nats + loss, count + piece.count
            with torch.no_grad():
                for theta, g, rate, pull, old in zip(model.parameters(), gradient, rates, back, start, strict=True):
                    theta.add_(pull * (old - theta) - rate * g)
        progress(index + 1, len(batches))
        if most is not None and count >= most:
            break
    return nats, count


def _gradient(model: TokenModel, batch: TokenBatch, state: State) -> tuple[list[Tensor], float, State]:
    """The gradient of the mean -log p of a batch by every parameter, their sum, and the state after the batch.

    It is that of the targets alone, whatever penalties and label smoothing the model was trained with.
    """
    model.zero_grad()
    batch = batch.to(device_of(model))
    ys, state = model(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
    nats = model.head.loss(ys, batch.targets, batch.lengths)
    (nats.sum() / batch.count).backward()
    found = [
        torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
        for p in model.parameters()
    ]
    model.zero_grad()
    return found, float(nats.detach().cpu().double().sum()), detach(state)
