"""One class out of many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads.cross_entropy import alone, cross_entropy
from everstep.heads.head import IGNORED
from everstep.heads.linear_head import LinearHead
from everstep.heads.sum_over_steps import over_steps
from everstep.state import valid


class Categorical(LinearHead):
    """p(k | y) = softmax(W y + b)_k, over K classes.

    >>> head = Categorical(8, 10)
    >>> head.loss(torch.zeros(2, 7, 8), torch.zeros(2, 7, dtype=torch.int64), torch.tensor([7, 0])).shape
    torch.Size([2])

    Args:
        input_size: features D of y.
        classes: K.
        tied: an embedding's weight (K, E) to use as W (Press & Wolf 2017; Inan 2017); where E ≠ D, a linear layer
            without bias takes y to E features first.
        label_smoothing: in `objective`, the share ε of the target probability spread evenly over all classes (Szegedy
            2016). Reported likelihoods are never smoothed.

    A target of −100 has no loss.

    Parameters: `weight` (K, D or E), initially uniform in ±1/√D; `bias` (K,), initially zero.
    """

    def __init__(self, input_size: int, classes: int, *, tied: Tensor | None = None, label_smoothing: float = 0.0):
        super().__init__(input_size, classes, tied)
        self.label_smoothing = label_smoothing

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(target_t | y_t), (batch,), nats."""
        return over_steps(_nats(self.logits(ys).float(), target), lengths)

    def objective(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The training loss, with label smoothing, and the plain loss without a gradient; (batch,) nats each.

        Where there is something to learn, logits of padding are not computed, and see `CrossEntropy`.
        """
        if torch.is_grad_enabled() and alone(ys, self.weight):
            return self._learned(ys, target, lengths)
        logits = self.logits(ys).float()
        nats = _nats(logits, target)
        loss = over_steps(nats, lengths)
        if self.label_smoothing == 0:
            return loss, loss.detach()
        # (1 − ε)·(−log p_target) + ε·mean_k(−log p_k), where −log p_k = −log p_target + logit_target − logit_k
        extra = logits.gather(-1, target.clamp_min(0)[..., None])[..., 0] - logits.mean(-1)
        extra = torch.where(target == IGNORED, 0, extra)
        return over_steps(nats + self.label_smoothing * extra, lengths), loss.detach()

    def _learned(self, ys: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = None if lengths is None else valid(lengths, ys.shape[1])
        flat = self.joined(ys.flatten(0, 1) if inside is None else ys[inside])
        wanted = target.flatten() if inside is None else target[inside]
        ignored = wanted == IGNORED
        found = cross_entropy(flat, self.weight, self.bias, wanted.clamp_min(0), self.label_smoothing)
        found = torch.where(ignored, 0, found[0]), torch.where(ignored, 0, found[1])
        if inside is None:
            return found[0].view_as(target).sum(1), found[1].view_as(target).sum(1)
        loss, nats = (torch.zeros_like(target, dtype=one.dtype).masked_scatter(inside, one).sum(1) for one in found)
        return loss, nats


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    """−log p(target) of every step."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
