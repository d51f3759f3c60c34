"""A softmax with direct connections from the last words: a maximum-entropy n-gram model inside of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from everstep.heads.linear_head import LinearHead

_MULTIPLIER, _MIXER = 6364136223846793005, -49064778989728563  # from Knuth's generator, and from MurmurHash3
_POSITIVE = (1 << 63) - 1
_EXACT = 1 << 24  # integers below it are exact in float32


class MaxEntropy(LinearHead):
    """p(k | y, h) = softmax(s)_k with s_k = W_k y + b_k + Σ_{n=2…N} d[start_n(h) + k]: RNNME (Mikolov 2011).

    h are the last N − 1 words, and start_n hashes the last n − 1 of them to 0 … M − 1. So an n-gram "h k" has an entry
    of d as its weight, and those of all words k after one history lie side by side. N-grams share entries where the
    hash says so. b are the weights of 1-grams.

    >>> head = MaxEntropy(8, 10, longest=3, size=1000)
    >>> ys = torch.cat([torch.zeros(2, 7, 8), torch.ones(2, 7, 2)], -1)
    >>> head.loss(ys, torch.zeros(2, 7, dtype=torch.int64)).shape
    torch.Size([2])

    Args:
        input_size: features D of y.
        classes: K.
        longest: N, at least 2.
        size: M, the number of histories' places in d. More places, fewer n-grams that share a weight.
        tied: an embedding's weight (K, E) to use as W; where E ≠ D, a linear layer takes y to E features first.

    It reads outputs of D + N − 1 features: y, and after it the numbers + 1 of the last N − 1 words, the last one first,
    0 where there is none (`everstep.networks.recent_words`).

    Parameters: `weight` and `bias` of `LinearHead`; `direct` (M + K − 1,), d, zero. d has one dimension, so that weight
    decay leaves it alone.

    Source: Mikolov, Deoras, Povey, Burget & Černocký 2011, "Strategies for training large scale neural network language
    models". There the softmax is over classes of words; here it is over all.

    Known limits: no second derivatives; at most 2²⁴ − 2 words; the gradient of d is dense.

    Raises:
        ValueError: a size that does not fit.
    """

    def __init__(self, input_size: int, classes: int, *, longest: int, size: int, tied: Tensor | None = None):
        super().__init__(input_size, classes, tied)
        if longest < 2 or size < 1:
            raise ValueError(f"MaxEntropy: expected longest of 2 or more and size of 1 or more, got {longest}, {size}")
        if classes >= _EXACT - 1:
            raise ValueError(f"MaxEntropy: expected fewer than {_EXACT - 1:,} classes, got {classes:,}")
        self.longest, self.size = longest, size
        self.direct = nn.Parameter(torch.zeros(size + classes - 1))

    def starts(self, words: Tensor) -> Tensor:
        """Where the weights of each history begin in d, by the numbers + 1 of the last words; (…, N − 1) both."""
        hashed = torch.zeros_like(words[..., 0], dtype=torch.int64)
        found = []
        for word in words.to(torch.int64).unbind(-1):
            hashed = hashed * _MULTIPLIER + word + 1
            mixed = (hashed ^ (hashed >> 33)) * _MIXER
            found.append(((mixed ^ (mixed >> 29)) & _POSITIVE) % self.size)
        return torch.stack(found, -1)

    def logits(self, ys: Tensor) -> Tensor:
        """s, (…, classes), in float32 or float64, of y and the words after it, (…, D + N − 1)."""
        features, words = ys.flatten(0, -2).split([self.input_size, self.longest - 1], -1)
        scores = F.linear(self.joined(features.to(self.weight.dtype)), self.weight, self.bias)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        found: Tensor = _Added.apply(scores, self.direct, self.starts(words))
        return found.view(*ys.shape[:-1], self.classes)

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y, h) of outputs (n, D + N − 1) and targets (n,): (n,)."""
        return F.cross_entropy(self.logits(ys), target, reduction="none")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, longest={self.longest}, size={self.size:,}"


class _Added(torch.autograd.Function):
    """scores (n, K) + Σ_j direct[starts_j … starts_j + K − 1], starts (n, J); in place of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, direct: Tensor, starts: Tensor) -> Tensor:
        slices = direct.to(scores.dtype).unfold(0, scores.shape[1], 1)  # (M, K), a view of overlapping rows
        for column in starts.unbind(1):
            scores += slices.index_select(0, column)
        ctx.starts, ctx.size, ctx.dtype = starts, len(direct), direct.dtype
        ctx.mark_dirty(scores)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if not ctx.needs_input_grad[1]:
            return gradient, None, None
        words = gradient.shape[1]
        found = gradient.new_zeros(ctx.size)
        for column in ctx.starts.unbind(1):
            # rows of one history are added first: slices overlap, so that they are added one after the other
            places, group = torch.unique(column, return_inverse=True)
            sums = gradient.new_zeros(len(places), words).index_add_(0, group, gradient)
            for place, row in zip(places.tolist(), sums.unbind(0), strict=True):
                found[place : place + words] += row
        return gradient, found.to(ctx.dtype), None
