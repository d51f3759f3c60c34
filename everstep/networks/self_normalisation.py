"""How far the scores of a self-normalised softmax are from log-probabilities."""

from __future__ import annotations

from typing import Any

import torch

from everstep.data.batches import Batches, TokenBatch
from everstep.heads import NCE
from everstep.networks.token_model import TokenModel
from everstep.state import State, valid

LOG_Z = {
    "log_z_mean": "mean of log Σ_k e^{s_k}, which is 0 if scores are log-probabilities (nce)",
    "log_z_rms": "root of its mean square, the error of self-normalisation in nats",
}
"""A description of each measure."""


@torch.no_grad()
def log_z_measures(model: TokenModel, batches: Batches[TokenBatch]) -> dict[str, Any]:
    """The mean and the root mean square of log Z over all targets, in nats; none where the head is not `NCE`."""
    head = model.head
    if not isinstance(head, NCE):
        return {}
    model.eval()
    total, squares, count = 0.0, 0.0, 0
    state: State = None
    for index in range(len(batches)):
        batch = batches.batch(0, index).to(model.embedding.weight.device)
        ys, state = model(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
        state = state if batches.carries_state else None
        flat = ys.flatten(0, 1) if batch.lengths is None else ys[valid(batch.lengths, ys.shape[1])]
        log_z = head.log_z(flat).cpu().double()
        total, squares, count = total + float(log_z.sum()), squares + float(log_z.square().sum()), count + len(log_z)
    return {"log_z_mean": total / max(count, 1), "log_z_rms": (squares / max(count, 1)) ** 0.5}
