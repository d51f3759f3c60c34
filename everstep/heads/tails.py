"""Tail probabilities of a distribution that is known by its quantiles."""

from __future__ import annotations

import torch
from torch import Tensor


def log_tails(quantiles: Tensor, levels: Tensor, values: Tensor) -> Tensor:
    """log P(v ≤ value) and log P(v ≥ value), (…, 2) float64.

    The distribution function is linear between quantiles. Beyond the outermost ones the tails are exponential, with the
    density of the outermost interval at their begin; a tail is an assumption, since no quantile lies in it.

    >>> log_tails(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.25, 0.5, 0.75]), torch.tensor(1.0)).exp()
    tensor([0.5000, 0.5000], dtype=torch.float64)

    Args:
        quantiles: (…, K) K ≥ 2 quantiles, not decreasing.
        levels: (K,) increasing, within (0, 1).
        values: (…).
    """
    q, tau = quantiles.double(), levels.double()
    below = _log_cdf(q, tau, values.double())
    above = _log_cdf(-q.flip(-1), 1 - tau.flip(-1), -values.double())
    return torch.stack([below, above], -1)


def _log_cdf(q: Tensor, tau: Tensor, values: Tensor) -> Tensor:
    """log P(v ≤ value), (…)."""
    t = values[..., None].contiguous()
    place = torch.searchsorted(q.contiguous(), t, right=True)
    inner = place.clamp(1, len(tau) - 1)
    low, high = q.gather(-1, inner - 1), q.gather(-1, inner)
    smallest = torch.finfo(q.dtype).tiny
    share = ((t - low) / (high - low).clamp_min(smallest)).clamp(0, 1)
    within = torch.lerp(tau[inner - 1], tau[inner], share).log()
    floor = 1e-6 * (q[..., -1:] - q[..., :1]) + 1e-9 * q.abs().amax(-1, keepdim=True) + smallest
    first = torch.maximum(tau[0] * (q[..., 1:2] - q[..., :1]) / (tau[1] - tau[0]), floor)
    last = torch.maximum((1 - tau[-1]) * (q[..., -1:] - q[..., -2:-1]) / (tau[-1] - tau[-2]), floor)
    under = tau[0].log() - (q[..., :1] - t).clamp_min(0) / first
    over = torch.log1p(-(1 - tau[-1]) * torch.exp(-(t - q[..., -1:]).clamp_min(0) / last))
    found = torch.where(place == 0, under, torch.where(place == len(tau), over, within))
    return found[..., 0]
