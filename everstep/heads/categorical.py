"""One class out of many."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.cross_entropy import cross_entropy
from everstep.heads.sum_over_steps import over_steps
from everstep.native.plain_memory import plain, watched
from everstep.state import valid


class Head(nn.Module):
    """Turns the outputs of a layer, (batch, time, features), into a distribution over targets.

    Attributes:
        targets: what the target of a step is: "class", one of K; "labels", (K,) of 0 and 1; None: something else. Heads
            of classes and labels are made from (features, K).
    """

    targets: ClassVar[Literal["class", "labels"] | None] = None

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(target_t | y_t) of every row, (batch,), in nats; padding is ignored."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The prediction for every output."""
        raise NotImplementedError(f"{type(self).__name__} has no predict")


class Categorical(Head):
    """p(k | y) = softmax(W y + b)_k, over K classes.

    >>> head = Categorical(8, 10)
    >>> head.loss(torch.zeros(2, 7, 8), torch.zeros(2, 7, dtype=torch.int64), torch.tensor([7, 0])).shape
    torch.Size([2])

    Args:
        input_size: features D of y.
        classes: K.
        tied: an embedding's weight (K, E) to use as W (Press & Wolf 2017; Inan 2017); where E ≠ D, a linear layer
            without bias takes y to E features first.
        label_smoothing: in `smoothed`, the share ε of the target probability spread evenly over all classes (Szegedy
            2016). Reported likelihoods are never smoothed.

    Parameters: `weight` (K, D or E), initially uniform in ±1/√D; `bias` (K,), initially zero.
    """

    targets = "class"

    def __init__(self, input_size: int, classes: int, *, tied: Tensor | None = None, label_smoothing: float = 0.0):
        super().__init__()
        self.input_size, self.classes, self.label_smoothing = input_size, classes, label_smoothing
        if tied is not None and tied.shape[0] != classes:
            raise ValueError(f"Categorical: a tied weight should have {classes} rows, but has {tied.shape[0]}")
        features = input_size if tied is None else tied.shape[1]
        self.join = nn.Linear(input_size, features, bias=False) if features != input_size else None
        bound = features**-0.5
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound)) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(classes))

    def logits(self, ys: Tensor) -> Tensor:
        """W y + b, (…, classes)."""
        # on 2-D input the bias is added within the product, which saves a pass over all logits
        flat = ys.flatten(0, -2)
        if self.join is not None:
            flat = self.join(flat)
        return F.linear(flat, self.weight, self.bias).view(*ys.shape[:-1], self.classes)

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32."""
        return self.logits(ys).float().log_softmax(-1)

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(target_t | y_t), (batch,), nats."""
        return over_steps(_nats(self.logits(ys).float(), target), lengths)

    def smoothed(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The training loss, with label smoothing, and the plain loss without a gradient; (batch,) nats each.

        Where there is something to learn, logits of padding are not computed, and see `CrossEntropy`.
        """
        cast = torch.is_autocast_enabled(ys.device.type) or ys.dtype not in (torch.float32, torch.float64)
        if torch.is_grad_enabled() and not cast and plain(ys, self.weight) and watched() is None:
            return self._learned(ys, target, lengths)
        logits = self.logits(ys).float()
        nats = _nats(logits, target)
        loss = over_steps(nats, lengths)
        if self.label_smoothing == 0:
            return loss, loss.detach()
        # (1 − ε)·(−log p_target) + ε·mean_k(−log p_k), where −log p_k = −log p_target + logit_target − logit_k
        extra = logits.gather(-1, target[..., None])[..., 0] - logits.mean(-1)
        return over_steps(nats + self.label_smoothing * extra, lengths), loss.detach()

    def _learned(self, ys: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = None if lengths is None else valid(lengths, ys.shape[1])
        flat = ys.flatten(0, 1) if inside is None else ys[inside]
        if self.join is not None:
            flat = self.join(flat)
        wanted = target.flatten() if inside is None else target[inside]
        found = cross_entropy(flat, self.weight, self.bias, wanted, self.label_smoothing)
        if inside is None:
            return found[0].view_as(target).sum(1), found[1].view_as(target).sum(1)
        loss, nats = (torch.zeros_like(target, dtype=one.dtype).masked_scatter(inside, one).sum(1) for one in found)
        return loss, nats

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.classes}"


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    """−log p(target) of every step."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
