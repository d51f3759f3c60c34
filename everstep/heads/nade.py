"""Several labels, each of which depends on the ones before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.head import Head
from everstep.heads.sum_over_steps import over_steps
from everstep.state import valid


class NADE(Head):
    """p(x | y) = Π_k p(x_k | x_1 … x_{k-1}, y), over K labels x_k of 0 and 1 (Larochelle & Murray 2011).

    p(x_k = 1 | x_<k, y) = σ(b_k + V_k · σ(a_k)), with a_k = c + Σ_{j<k} x_j W_j. Both biases depend on the output y of
    a network, b = B y + b_0 and c = C y + c_0 (RNN-NADE; Boulanger-Lewandowski 2012), so that labels of a step depend
    on one another, which those of `Bernoulli` do not.

    >>> head = NADE(8, 3)
    >>> head.loss(torch.zeros(2, 7, 8), torch.zeros(2, 7, 3), torch.tensor([7, 0])).shape
    torch.Size([2])

    Args:
        input_size: features D of y.
        classes: K.
        hidden_size: H, features of a_k.

    Parameters: `weight` (K, D), B, and `hidden_weight` (H, D), C, initially uniform in ±1/√D; `bias` (K,), b_0, and
    `hidden_bias` (H,), c_0, initially zero; `reads` (K, H), W, and `writes` (K, H), V, initially uniform in ±1/√H.

    a_k changes only behind a label that is present: with at most n of them in a step, memory grows with (n + 1) K.
    """

    targets = "labels"

    def __init__(self, input_size: int, classes: int, hidden_size: int = 100):
        super().__init__()
        self.input_size, self.classes, self.hidden_size = input_size, classes, hidden_size

        def drawn(rows: int, columns: int) -> nn.Parameter:
            bound = columns**-0.5
            return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound))

        self.weight, self.bias = drawn(classes, input_size), nn.Parameter(torch.zeros(classes))
        self.hidden_weight, self.hidden_bias = drawn(hidden_size, input_size), nn.Parameter(torch.zeros(hidden_size))
        self.reads, self.writes = drawn(classes, hidden_size), drawn(classes, hidden_size)

    def logits_after(self, ys: Tensor, present: Tensor) -> Tensor:
        """The logit of each label, (…, K), if of those before it just those of `present` (…, K) are there."""
        hidden = F.linear(ys, self.hidden_weight, self.hidden_bias) + present.to(self.reads) @ self.reads
        return F.linear(ys, self.weight, self.bias) + hidden.sigmoid() @ self.writes.t()

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k is present | y, x_<k), (…, K), in float32, where x_j is 1 if that was more probable than 0."""
        present = ys.new_zeros(*ys.shape[:-1], self.classes)
        found = []
        for k in range(self.classes):
            logit = self.logits_after(ys, present)[..., k]
            present = torch.where(torch.arange(self.classes, device=ys.device) == k, (logit > 0)[..., None], present)
            found.append(logit)
        return F.logsigmoid(torch.stack(found, -1).float())

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """−Σ_t log p(target_t | y_t), (batch,), nats; targets (batch, time, K) are 0 or 1."""
        if lengths is None:
            return over_steps(self._nats(ys.flatten(0, 1), target.flatten(0, 1)).view(ys.shape[:2]), None)
        inside = valid(lengths, ys.shape[1])
        nats = self._nats(ys[inside], target[inside])
        return torch.zeros_like(inside, dtype=nats.dtype).masked_scatter(inside, nats).sum(1)

    def _nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p of targets (n, K) given outputs (n, D): (n,)."""
        there = target.to(self.reads)
        many = int(target.sum(-1).max()) if len(target) else 0
        before = F.pad(there.long().cumsum(-1), (1, 0))  # labels that are present before each one, and in all
        read = self._read(there, before[:, -1], many)
        hidden = (F.linear(ys, self.hidden_weight, self.hidden_bias)[:, None] + read).sigmoid()
        every = hidden @ self.writes.t()
        logits = F.linear(ys, self.weight, self.bias) + every.gather(1, before[:, None, :-1])[:, 0]
        return F.binary_cross_entropy_with_logits(logits.float(), there.float(), reduction="none").sum(-1)

    def _read(self, there: Tensor, counts: Tensor, many: int) -> Tensor:
        """Σ W_j over the first 0 … `many` labels that are present, (n, many + 1, H)."""
        labels = there.argsort(dim=-1, descending=True, stable=True)[:, :many]  # those that are present, in order
        rows = self.reads[labels] * (torch.arange(many, device=there.device) < counts[:, None])[..., None]
        return F.pad(rows, (0, 0, 1, 0)).cumsum(1)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.classes}, hidden_size={self.hidden_size}"
