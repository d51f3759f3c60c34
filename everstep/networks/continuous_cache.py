"""The continuous cache: what followed similar states in the recent past."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Batches, TokenBatch
from everstep.networks.token_model import TokenModel
from everstep.parameters import device_of
from everstep.state import State

Floats = NDArray[np.float64]


@torch.inference_mode()
def cached_probabilities(
    model: TokenModel,
    batches: Batches[TokenBatch],
    size: int,
    sharpness: Sequence[float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Floats, Floats]:
    """p of each target by the model and by continuous caches, in the order of the text (Grave, Joulin & Usunier 2017).

    p_cache(w | t) ∝ Σ_i exp(θ h_t · h_i) [x_{i+1} = w] over the last `size` steps i before t, where h_t is the output
    of the body at step t and x_{i+1} the token that followed step i.

    Args:
        model: in eval mode.
        batches: one lane with carried state, see `exact_batches`.
        size: steps that a cache holds.
        sharpness: θ of each cache.
        progress: called with batches done and their number.

    Returns:
        (T,) and (caches, T). The first target has nothing before it, and p = 0 in every cache.
    """
    model.eval()
    device = device_of(model)
    theta = torch.tensor(sharpness, dtype=torch.float32, device=device)[:, None, None]
    state: State = None
    keys = torch.empty(0, model.body.output_size, device=device)
    values = torch.empty(0, dtype=torch.int64, device=device)
    plain, cached = [], []
    for index in range(len(batches)):
        batch = batches.batch(0, index).to(device)
        ys, state = model(batch.inputs, state, resets=batch.resets)
        plain.append(model.head.predict(ys)[0].gather(-1, batch.targets[0, :, None])[:, 0].cpu().double().exp())
        keys, values = torch.cat([keys, ys[0, :, : keys.shape[1]]]), torch.cat([values, batch.targets[0]])
        cached.append(_shares(keys, values, len(ys[0]), size, theta).cpu())
        keys, values = keys[-size:].clone(), values[-size:].clone()
        progress(index + 1, len(batches))
    return torch.cat(plain).numpy(), torch.cat(cached, 1).double().numpy()


def _shares(keys: Tensor, values: Tensor, new: int, size: int, theta: Tensor) -> Tensor:
    """p of the last `new` values, (caches, new), each by the `size` steps before its own."""
    before = len(keys) - new
    places = torch.arange(len(keys), device=keys.device)
    ages = places[before:, None] - places
    inside = (ages > 0) & (ages <= size)
    scores = (theta * (keys[before:] @ keys.T)).masked_fill(~inside, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True).clamp_min(-1e30)).exp()
    hits = (weights * (values[before:, None] == values)).sum(-1)
    return hits / weights.sum(-1).clamp_min(1e-30)
