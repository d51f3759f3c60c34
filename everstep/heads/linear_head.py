"""What heads share that score each class by a row of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads import compiled_softmax
from everstep.heads.cross_entropy import in_one_pass, row_nats
from everstep.heads.head import VocabularyHead
from everstep.native.memory_pool import empty
from everstep.native.products import Packed


class LinearHead(VocabularyHead):
    """Base class: p(k | y) = softmax(W y + b)_k, where W may be an embedding's weight.

    Args:
        input_size: features D of y.
        classes: K.
        tied: an embedding's weight (K, E) to use as W (Press & Wolf 2017; Inan 2017); where E ≠ D, a linear layer
            `join` without bias takes y to E features first.

    Parameters: `weight` (K, D or E), initially uniform in ±1/√D; `bias` (K,), initially zero.

    Raises:
        ValueError: the tied weight has another number of rows.
    """

    def __init__(self, input_size: int, classes: int, tied: Tensor | None = None):
        super().__init__()
        self.input_size, self.classes = input_size, classes
        if tied is not None and tied.shape[0] != classes:
            name = type(self).__name__
            raise ValueError(f"{name}: a tied weight should have {classes} rows, but has {tied.shape[0]}")
        features = input_size if tied is None else tied.shape[1]
        self.join = nn.Linear(input_size, features, bias=False) if features != input_size else None
        bound = features**-0.5
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound)) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(classes))

    def joined(self, ys: Tensor) -> Tensor:
        """y, or what `join` makes of it."""
        return ys if self.join is None else self.join(ys)

    def logits(self, ys: Tensor) -> Tensor:
        """W y + b, (…, classes)."""
        # on 2-D input the bias is added within the product, which saves a pass over all logits
        flat = self.joined(ys.flatten(0, -2))
        return F.linear(flat, self.weight, self.bias).view(*ys.shape[:-1], self.classes)

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32."""
        if not self._compiled(ys):
            return self.logits(ys).float().log_softmax(-1)
        flat = self.joined(ys.flatten(0, -2))
        logits = torch.mm(flat, self.weight.t(), out=empty(flat, len(flat), self.classes))
        return compiled_softmax.log_softmax(logits, self.bias).view(*ys.shape[:-1], self.classes)

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """See `VocabularyHead.prepared`: W is packed, at the first call."""
        if type(self).predict is not LinearHead.predict:
            return self.predict
        packed: list[Packed] = []

        def predict(ys: Tensor) -> Tensor:
            if ys.dim() != 2 or not self._compiled(ys):
                return self.predict(ys)
            if not packed:
                packed.append(Packed(self.weight.t()))
            return compiled_softmax.log_softmax(packed[0](self.joined(ys)), self.bias)

        return predict

    def _compiled(self, ys: Tensor) -> bool:
        """Whether the loop of `compiled_softmax` may compute log p, and nothing but W y + b is in it."""
        own = type(self).logits is not LinearHead.logits  # of a subclass that adds to them
        return not own and ys.dtype == self.weight.dtype == torch.float32 and in_one_pass(ys, self.weight)

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y) of outputs (n, D) and targets (n,): (n,)."""
        return row_nats(self.joined(ys), self.weight, self.bias, target)
