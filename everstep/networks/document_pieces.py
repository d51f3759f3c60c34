"""Truncated backpropagation through time for the classification of long sequences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from everstep.cell import scan
from everstep.data.labelled_batches import LabelledBatch
from everstep.learn.objective import Loss
from everstep.networks.classifier import Classifier
from everstep.state import detach
from everstep.wirings import ReadOut

READ_OUTS = ("last", "sum", "mean", "max")
"""Read-outs that can be continued over pieces."""


def piece_losses(model: Classifier, batch: LabelledBatch, weights: Tensor | None, size: int) -> Iterator[Loss]:
    """Σ_j (n_j / n) · −log p(class | x_1 … x_{t_j}), one loss for each piece j of `size` steps that ends at t_j.

    The class is predicted after each piece from all steps so far; piece j has n_j of the n steps of a sequence. State
    and read-out are carried over, gradients are cut at the start of a piece. So memory is that of one piece.

    Args:
        model: a causal model with one of READ_OUTS.
        batch: whole sequences.
        weights: (K,) weights of the classes, or None.
        size: steps in a piece: tokens, or rows of numbers.

    Raises:
        ValueError: the read-out cannot be continued.
    """
    body = model.body
    if not isinstance(body, ReadOut) or body.reduce not in READ_OUTS:
        raise ValueError(f"piece_losses: expected a read-out of {', '.join(READ_OUTS)}, but got {body}")
    state, read, ratios = None, None, getattr(model, "ratios", None)  # numbers have none
    own = batch.labels if model.training else None
    for place, (steps, live) in enumerate(model.pieces(batch.inputs, batch.lengths, size)):
        start = place * size
        ys, state = scan(body.layer, steps, state, lengths=live)
        read = _read(body.reduce, ys, live, read, batch.lengths.clamp(max=start) + live)
        logits = model.head.logits(model.dropout(read))  # type: ignore[operator]
        if ratios is not None:
            logits = logits + ratios(batch.inputs, batch.lengths, own)
        total, nats = model.answers.losses(model.head, logits, batch.labels)
        share = live / batch.lengths.clamp(min=1)
        if not start:
            share = torch.where(batch.lengths == 0, 1.0, share)
        total = total * share if weights is None else total * share * weights.to(total)[batch.labels]
        yield Loss(total, nats * share)
        state, read = detach(state), read.detach()


def _read(reduce: str, ys: Tensor, live: Tensor, before: Tensor | None, so_far: Tensor) -> Tensor:
    """The read-out of all steps so far, (batch, features), from that of earlier pieces and this piece's outputs."""
    there = (torch.arange(ys.shape[1], device=ys.device) < live[:, None])[..., None]
    before = ys.new_zeros(len(ys), ys.shape[-1]) if before is None else before
    some = (live > 0)[:, None]
    if reduce == "last":
        return torch.where(some, ys[torch.arange(len(ys), device=ys.device), (live - 1).clamp(min=0)], before)
    if reduce == "max":
        most = ys.masked_fill(~there & some[..., None], -torch.inf).amax(1)
        first = (so_far == live)[:, None]
        return torch.where(some, torch.where(first, most, torch.maximum(most, before)), before)
    if reduce == "sum":
        return before + ys.sum(1)
    earlier = (so_far - live)[:, None]
    return (before * earlier + ys.sum(1)) / so_far.clamp(min=1)[:, None]
