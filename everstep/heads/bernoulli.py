"""Several labels, each present or absent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.head import Head
from everstep.heads.sum_over_steps import over_steps


class Bernoulli(Head):
    """p(k is present | y) = σ(W y + b)_k, independently for each of K labels.

    >>> head = Bernoulli(8, 3)
    >>> head.loss(torch.zeros(2, 7, 8), torch.zeros(2, 7, 3), torch.tensor([7, 0])).shape
    torch.Size([2])

    Args:
        input_size: features D of y.
        classes: K.

    Parameters: `weight` (K, D), initially uniform in ±1/√D; `bias` (K,), initially zero.
    """

    targets = "labels"

    def __init__(self, input_size: int, classes: int):
        super().__init__()
        self.input_size, self.classes = input_size, classes
        bound = input_size**-0.5
        self.weight = nn.Parameter(torch.empty(classes, input_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes))

    def logits(self, ys: Tensor) -> Tensor:
        """W y + b, (…, K)."""
        return F.linear(ys, self.weight, self.bias)

    def logits_after(self, ys: Tensor, present: Tensor) -> Tensor:
        """The logit of each label, (…, K), which does not depend on those that are `present`."""
        del present
        return self.logits(ys)

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k is present | y), (…, K), in float32."""
        return F.logsigmoid(self.logits(ys).float())

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t Σ_k log p(target_tk | y_t), (batch,), nats; targets (batch, time, K) are 0 or 1."""
        nats = F.binary_cross_entropy_with_logits(self.logits(ys).float(), target.float(), reduction="none").sum(-1)
        return over_steps(nats, lengths)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.classes}"
