"""What a head is: outputs of a layer become a distribution over targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from everstep.heads.sum_over_steps import over_steps
from everstep.state import valid

IGNORED = -100
"""The target of a step that has no loss, as in `torch.nn.functional.cross_entropy`."""


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


class VocabularyHead(Head):
    """Base class of heads with one class out of K, for K up to millions.

    A target of −100 (`IGNORED`) has no loss, as padding has none. A subclass gives `predict`, and where there are
    quicker ways `nats` and `learned`; both see the n steps that have a target, and no padding.

    Attributes:
        input_size: features D of y.
        classes: K.
    """

    targets = "class"
    input_size: int
    classes: int

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32; exact, whatever the training loss."""
        raise NotImplementedError(f"{type(self).__name__} has no predict")

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """`predict` of outputs (n, D), for many calls between which the weights do not change."""
        return self.predict

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y) of outputs (n, D) and targets (n,): (n,), exact."""
        return -self.predict(ys).gather(-1, target[:, None])[:, 0]

    def learned(self, ys: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """As `nats`, what training minimises, and the −log p to report, which has no gradient: (n,) each, in nats."""
        nats = self.nats(ys, target)
        return nats, nats.detach()

    def counted(self, counts: Tensor) -> None:
        """Tell the head how often each class occurs in the training data, (K,); call before training."""
        del counts  # most heads do not ask

    def each(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−log p(target_t | y_t) of every step, (batch, time), in nats; 0 where there is none."""
        inside = _inside(target, lengths)
        nats = self.nats(ys[inside], target[inside])
        return torch.zeros_like(target, dtype=nats.dtype).masked_scatter(inside, nats)

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(target_t | y_t), (batch,), nats; exact, whatever the training loss."""
        return over_steps(self.each(ys, target, lengths), None)

    def objective(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The training loss, and the −log p to report, which has no gradient; (batch,) nats each.

        In eval mode both are `loss`. In training a head that samples reports an estimate.
        """
        if not self.training:
            loss = self.loss(ys, target, lengths)
            return loss, loss.detach()
        inside = _inside(target, lengths)
        found = self.learned(ys[inside], target[inside])
        loss, nats = (torch.zeros_like(target, dtype=one.dtype).masked_scatter(inside, one).sum(1) for one in found)
        return loss, nats

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.classes}"


def _inside(target: Tensor, lengths: Tensor | None) -> Tensor:
    """Whether a step has a loss, (batch, time)."""
    there = target != IGNORED
    return there if lengths is None else there & valid(lengths, target.shape[1])
