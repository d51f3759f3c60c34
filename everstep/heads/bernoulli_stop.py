"""Words, and beside each of them whether it was the last one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.cross_entropy import row_nats
from everstep.heads.linear_head import LinearHead


class BernoulliStop(LinearHead):
    """p(end | y) = σ(v · y + a); p(k | y) = (1 − σ(v · y + a)) · softmax(W y + b)_k over all classes but the end.

    After each step a coin decides whether the sequence ends there; only if not, the next word is drawn. So the length
    has weights of its own, and is not one word among thousands.

    >>> head = BernoulliStop(8, 10, end=3)
    >>> head.predict(torch.zeros(1, 8)).exp()[0, 3].item()
    0.5

    Args:
        input_size: features D of y.
        classes: K ≥ 2, the end included.
        end: the class that ends a sequence.
        tied: an embedding's weight (K, E) to use as W; where E ≠ D, a linear layer takes y to E features first.

    Parameters: those of a softmax, `weight` and `bias`, of which the end's are unused; `stop.weight` (1, D), v, and
    `stop.bias` (1,), a, initially zero.

    Raises:
        ValueError: the end is none of the classes, there is no other, or a tied weight does not fit.
    """

    def __init__(self, input_size: int, classes: int, *, end: int = 0, tied: Tensor | None = None):
        super().__init__(input_size, classes, tied)
        if classes < 2 or not 0 <= end < classes:
            raise ValueError(f"BernoulliStop: expected an end among 2 or more classes, got {end} of {classes}")
        self.end = end
        self.stop = nn.Linear(input_size, 1)
        nn.init.zeros_(self.stop.weight)
        nn.init.zeros_(self.stop.bias)

    def _bias(self) -> Tensor:
        """b, with −∞ for the end."""
        at = torch.arange(self.classes, device=self.bias.device) == self.end
        return self.bias.masked_fill(at, -torch.inf)

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32."""
        ends = self.stop(ys).float()
        log_p = F.linear(self.joined(ys), self.weight, self._bias()).float().log_softmax(-1) + F.logsigmoid(-ends)
        at = torch.arange(self.classes, device=ys.device) == self.end
        return torch.where(at, F.logsigmoid(ends), log_p)

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y) of outputs (n, D) and targets (n,): (n,)."""
        ends, last = self.stop(ys)[:, 0].float(), target == self.end
        found = torch.where(last, -F.logsigmoid(ends), -F.logsigmoid(-ends))
        rows = (~last).nonzero()[:, 0]
        words = row_nats(self.joined(ys[rows]), self.weight, self._bias(), target[rows])
        return found.index_add(0, rows, words.to(found))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, end={self.end}"
