"""Ordinal classes: a score compared with thresholds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.head import Head
from everstep.heads.sum_over_steps import over_steps


class Cumulative(Head):
    """p(k ≤ j | y) = σ(θ_j − w · y), for K ordered classes, with thresholds θ_1 < … < θ_{K−1}.

    The proportional-odds model of McCullagh 1980, "Regression models for ordinal data": one score w · y for all
    classes, and K − 1 thresholds. θ_j = θ_1 + Σ_{i<j} softplus(δ_i) keeps them in order.

    >>> head = Cumulative(8, 5)
    >>> head.predict(torch.zeros(2, 7, 8)).exp().sum(-1).mean().item()
    1.0

    Args:
        input_size: features D of y.
        classes: K ≥ 2.

    Parameters: `weight` (1, D), initially uniform in ±1/√D; `first` (), θ_1, and `steps` (K − 2,), δ, initialised so
    that a score of 0 gives each class the same probability.

    Raises:
        ValueError: fewer than two classes.
    """

    targets = "class"

    def __init__(self, input_size: int, classes: int):
        super().__init__()
        if classes < 2:
            raise ValueError(f"Cumulative: expected at least 2 classes, got {classes}")
        self.input_size, self.classes = input_size, classes
        bound = input_size**-0.5
        self.weight = nn.Parameter(torch.empty(1, input_size).uniform_(-bound, bound))
        even = torch.logit(torch.arange(1, classes) / classes)
        self.first = nn.Parameter(even[0].clone())
        self.steps = nn.Parameter(even.diff().expm1().log())  # inverse of softplus

    @property
    def thresholds(self) -> Tensor:
        """θ, (K − 1,), increasing."""
        return torch.cat([self.first[None], self.first + F.softplus(self.steps).cumsum(0)])

    def logits(self, ys: Tensor) -> Tensor:
        """θ_j − w · y, (…, K − 1)."""
        return self.thresholds - F.linear(ys, self.weight)

    @staticmethod
    def log_probs(logits: Tensor) -> Tensor:
        """From logits θ_j − w · y, increasing in the last dimension, to log p(k | y), (…, K), in float32."""
        z = logits.float()
        below, above = F.logsigmoid(z), F.logsigmoid(-z)
        # σ(b) − σ(a) = σ(b) σ(−a) (1 − e^(a − b)), accurate where both are near 0 or 1
        inside = below[..., 1:] + above[..., :-1] + torch.log(-torch.expm1(z[..., :-1] - z[..., 1:]))
        return torch.cat([below[..., :1], inside, above[..., -1:]], -1)

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, K)."""
        return self.log_probs(self.logits(ys))

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(target_t | y_t), (batch,), nats."""
        nats = -self.predict(ys).gather(-1, target[..., None])[..., 0]
        return over_steps(nats, lengths)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.classes}"
