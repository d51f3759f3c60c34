"""The objective −Σ log p(x_t | x_<t) under truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from everstep.data.batches import TokenBatch
from everstep.learn.bptt import narrow
from everstep.learn.objective import Loss, Objective
from everstep.learn.regularisers import activation_penalty, change_penalty
from everstep.networks.token_model import TokenModel
from everstep.sections import Count, NonNegative, Probability, Section
from everstep.state import State, detach


class LikelihoodSection(Section):
    """The objective: −log p of the next token, the reach of gradients, and penalties."""

    k1: Count = 64
    """steps between updates; unused if data.sequence is lines"""
    random_k1: bool = False
    """draw the steps between updates anew in every epoch: about k1, and k1 / 2 for one in 20 (Merity 2018)"""
    k2: Count | None = None
    """steps that gradients reach back; null: k1"""
    label_smoothing: Probability = 0.0
    """share of the target's probability that is spread over all tokens"""
    activation_penalty: NonNegative = 0.0
    """α of AR: α times the mean square of the outputs after dropout (Merity 2017)"""
    change_penalty: NonNegative = 0.0
    """β of TAR: β times the mean square of their change per step, before dropout"""


def likelihood(k2: int | None = None, activation: float = 0.0, change: float = 0.0) -> Objective[TokenBatch]:
    """The objective −Σ log p(x_t | x_<t) under truncated BPTT (Williams & Peng 1990), with optional AR and TAR.

    Args:
        k2: steps that the gradient reaches back. A longer batch is cut into pieces of k2 steps, whose gradients are
            added. If k2 exceeds the steps of an update, the batch brings earlier steps as context, which run again with
            the current weights. None: the whole batch.
        activation: α of `activation_penalty`, in nats per target.
        change: β of `change_penalty`, in nats per target; steps without a loss have none.
    """

    def objective(model: nn.Module, batch: TokenBatch, state: State | None) -> Iterator[Loss]:
        assert isinstance(model, TokenModel)
        time = batch.inputs.shape[1]
        span = time if k2 is None or batch.context or not model.training else min(k2, time)
        for start in range(0, time, span):
            piece = batch if span >= time else narrow(batch, start, start + span)
            ys, plain, state, carried = _run(model, piece, state)
            seen = slice(piece.context, None)
            lengths = None if piece.lengths is None else (piece.lengths - piece.context).clamp_min(0)
            total, nats = model.head.objective(ys[:, seen], piece.targets[:, seen], lengths)
            if activation:
                outputs = ys[:, seen, : model.body.output_size]  # without the words that a head may read
                total = total + activation * activation_penalty(outputs, lengths)
            if change:
                resets = None if piece.resets is None else piece.resets[:, seen]
                total = total + change * change_penalty(plain[:, seen], lengths, resets)
            yield Loss(total, nats, carried)
            state = detach(state)

    return objective


def _run(model: TokenModel, batch: TokenBatch, state: State | None) -> tuple[Tensor, Tensor, State, State]:
    """Outputs after and before dropout, the final state, and the state where the next batch begins."""
    time = batch.inputs.shape[1]
    if not 0 < batch.advance < time:
        ys, plain, state = model.outputs(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
        return ys, plain, state, state
    first, rest = narrow(batch, 0, batch.advance), narrow(batch, batch.advance, time)
    before: Any
    *before, carried = model.outputs(first.inputs, state, lengths=first.lengths, resets=first.resets)
    *after, state = model.outputs(rest.inputs, carried, lengths=rest.lengths, resets=rest.resets)
    ys, plain = (torch.cat(parts, 1) for parts in zip(before, after, strict=True))
    return ys, plain, state, carried
