"""Labels without their times: connectionist temporal classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.head import IGNORED, Head


def steps_needed(target: Tensor) -> Tensor:
    """The fewest steps that can spell labels (batch, U): one a label, and a blank between two equal ones. (batch,).

    >>> steps_needed(torch.tensor([[3, 3, 4], [3, IGNORED, IGNORED]])).tolist()
    [4, 1]
    """
    there = target != IGNORED
    again = (target[:, 1:] == target[:, :-1]) & there[:, 1:]
    return there.sum(1) + again.sum(1)


def ctc_nats(log_p: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
    """−log p(labels) of each row, (batch,), in nats, of log p of K labels and the blank K, (batch, time, K + 1).

    p(l) = Σ_π Π_t p_t(π_t) over all paths π of a row's length that spell l: repetitions count once, and then blanks are
    left out. A path has no more labels than steps: where `steps_needed` exceeds the length, the result is +∞, and no
    gradient flows.
    """
    rows, time, classes = log_p.shape
    lengths = torch.full((rows,), time, device=log_p.device) if lengths is None else lengths
    labels = (target != IGNORED).sum(1)
    nats = F.ctc_loss(
        (log_p if time else F.pad(log_p, (0, 0, 0, 1))).transpose(0, 1),  # PyTorch wants a step, if none that counts
        target.clamp_min(0),
        lengths,
        labels,
        blank=classes - 1,
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(steps_needed(target) > lengths, torch.inf, nats)


class CTC(Head):
    """p(labels | y_1 … y_T) for labels whose times are unknown (Graves 2006).

    At each step the classes are K labels and a blank, the class K: p_t(k) = softmax(W y_t + b)_k. For p of labels see
    `ctc_nats`. First derivatives only, which is what PyTorch's `ctc_loss` has.

    >>> head = CTC(8, 3)
    >>> head.loss(torch.zeros(2, 5, 8), torch.tensor([[0, 1], [2, IGNORED]]), torch.tensor([5, 0]))[1].item()
    inf

    Args:
        input_size: features D of y.
        labels: K.

    Parameters: `weight` (K + 1, D), initially uniform in ±1/√D; `bias` (K + 1,), initially zero.
    """

    def __init__(self, input_size: int, labels: int):
        super().__init__()
        self.input_size, self.labels = input_size, labels
        bound = input_size**-0.5
        self.weight = nn.Parameter(torch.empty(labels + 1, input_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(labels + 1))

    @property
    def blank(self) -> int:
        """The class of a step without a label, K."""
        return self.labels

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p_t(k), (…, K + 1), in nats, in float32 or more."""
        logits = F.linear(ys, self.weight, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−log p(labels) of each row, (batch,), in nats; +∞ where they need more steps than there are.

        Args:
            ys: (batch, time, D).
            target: (batch, U) int64, −100 (`IGNORED`) after the last label of a row.
            lengths: (batch,) steps of each row.
        """
        return ctc_nats(self.predict(ys), target, lengths)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.labels}"
