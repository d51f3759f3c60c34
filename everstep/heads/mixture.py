"""A mixture of Gaussians, whose parameters are the outputs of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.heads.numbers import MOST_LOG, SMALLEST, NumberHead

_HALVINGS = 60
"""Bisections of a quantile: the first interval, over 2^60."""


class GaussianMixture(NumberHead):
    """Σ_k π_k N(μ_k, σ_k²), y = (μ_1 … μ_K, log σ_1 … log σ_K, logits of π) (Bishop 1994, "Mixture density networks").

    Loss: −log p in nats. The components start apart, at μ_k + k − (K + 1) / 2, since equal ones would have equal
    gradients for ever. `quantiles` bisects the distribution function.

    >>> head = GaussianMixture(2)
    >>> head.quantiles(torch.zeros(1, 1, 6), (0.5,)).abs() < 1e-6
    tensor([[[True]]])

    Args:
        components: K ≥ 1.

    Raises:
        ValueError: `components` is below 1.

    Known limit: −log p has no lower bound where a component narrows onto one value; σ is at least 1e-4.
    """

    def __init__(self, components: int = 3):
        super().__init__()
        if components < 1:
            raise ValueError(f"GaussianMixture: expected at least one component; got {components}")
        self.components = self.locations = components
        self.size = 3 * components
        apart = torch.arange(components, dtype=torch.float32) - (components - 1) / 2
        self.register_buffer("apart", apart, persistent=False)

    apart: Tensor

    def _parts(self, ys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, deviations and log weights, (batch, time, K) each."""
        mean, log_spread, logits = ys.chunk(3, -1)
        return mean + self.apart.to(ys), log_spread.clamp(-MOST_LOG, MOST_LOG).exp() + SMALLEST, logits.log_softmax(-1)

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        mean, deviation, weight = self._parts(ys)
        inner = ((target[..., None] - mean) / deviation).square() / 2 + deviation.log() + 0.5 * math.log(2 * math.pi)
        found: Tensor = -torch.logsumexp(weight - inner, -1)
        return found

    def mean(self, ys: Tensor) -> Tensor:
        mean, _, weight = self._parts(ys)
        return (weight.exp() * mean).sum(-1)

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        mean, deviation, weight = (part.double()[..., None, :] for part in self._parts(ys))
        tau = torch.tensor(levels, dtype=torch.float64, device=ys.device)
        normal = torch.special.ndtri(tau)[:, None]
        ends = mean + deviation * normal  # a quantile lies between those of the components
        low, high = ends.amin(-1), ends.amax(-1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            share = (weight.exp() * torch.special.ndtr((middle[..., None] - mean) / deviation)).sum(-1)
            low, high = torch.where(share < tau, middle, low), torch.where(share < tau, high, middle)
        found: Tensor = ((low + high) / 2).to(ys.dtype)
        return found

    def log_tails(self, ys: Tensor, target: Tensor) -> Tensor:
        mean, deviation, weight = (part.double() for part in self._parts(ys))
        z = (target.double()[..., None] - mean) / deviation
        both = torch.stack([z, -z], -2)
        found: Tensor = torch.logsumexp(weight[..., None, :] + torch.special.log_ndtr(both), -1)
        return found

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        mean, deviation, weight = self._parts(ys)
        moved = mean * scale[..., None] + shift[..., None] - self.apart.to(ys)
        return torch.cat([moved, deviation.log() + scale.log()[..., None].expand_as(deviation), weight], -1)
