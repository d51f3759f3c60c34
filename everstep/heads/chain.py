"""The recursions of a linear chain of tags: the sum over all sequences, the best sequence, the n best.

`compiled_chain.py` does the first two in one compiled pass over each row; here they are loops of PyTorch's operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads import compiled_chain
from everstep.native.plain_memory import watched

NEVER = -1e30
"""The score of what is forbidden: e to it is exactly 0, and unlike −∞ it has differences, and gradients of 0."""


class Chain(NamedTuple):
    """Scores of a chain of K tags: `transitions` (K, K) from row to column, `start` (K,) and `end` (K,)."""

    transitions: Tensor
    start: Tensor
    end: Tensor


class Score(NamedTuple):
    """Scores of n sequences, or a logarithm of a sum of e to scores (n = 1), in small parts, which lose no digits.

    Attributes:
        steps: (batch, time, n), what each step adds; zero beyond a row's length.
        last: (batch, n), what the end adds; zero for a row without a step.
    """

    steps: Tensor
    last: Tensor

    def minus(self, other: Score) -> Tensor:
        """The difference, (batch, n)."""
        return (self.steps - other.steps).sum(1) + (self.last - other.last)

    def possible(self) -> Tensor:
        """Whether it holds nothing that is forbidden: (batch, n)."""
        return (torch.minimum(self.steps.amin(1), self.last) <= NEVER / 2).logical_not()  # NaN is no answer


def nats(scores: Tensor, chain: Chain, lengths: Tensor | None, target: Tensor | None = None) -> Tensor:
    """−log p of the target (batch, time ≥ 1) of each row: (batch,). It is ∞ where the target is forbidden.

    Without a target log Z = log Σ_y e^(score of y) over all sequences y; −∞ where all are forbidden.
    """

    def loop(scores: Tensor, *chain: Tensor) -> Tensor:
        every = log_sum(scores, Chain(*chain), lengths)
        if target is None:
            return torch.where(every.possible(), every.steps.sum(1) + every.last, -torch.inf)[:, 0]
        gold = score(scores, Chain(*chain), target[..., None], lengths)
        return torch.where(gold.possible(), every.minus(gold), torch.inf)[:, 0]

    if compiled_chain.available(scores, *chain, lengths, target):
        return compiled_chain.nats(scores, chain, lengths, target, loop)
    return loop(scores, *chain)


def log_sum(scores: Tensor, chain: Chain, lengths: Tensor | None) -> Score:
    """log Z, of a sequence for each row."""
    first, rest, further = _parted(scores, lengths)
    z = chain.start + first
    top = z.detach().amax(1, keepdim=True)  # without a gradient: what it adds, the state loses
    steps, state = _sum(rest, z - top, chain.transitions, further)
    last = (state + chain.end).logsumexp(1, keepdim=True)
    if lengths is not None:
        top, last = torch.where(lengths[:, None] > 0, top, 0), torch.where(lengths[:, None] > 0, last, 0)
    return Score(torch.stack([top, *steps], 1), last)


def _parted(scores: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The first step, the others, and how many others there are."""
    first, rest = scores.split([1, scores.shape[1] - 1], 1)
    if lengths is None:
        return first[:, 0], rest, None
    return torch.where(lengths[:, None] > 0, first[:, 0], 0), rest, (lengths - 1).clamp(min=0)


def _sum(scores: Tensor, state: Tensor, transitions: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """What each step adds to log Z, (batch, 1), and the state after the last: log Σ e^… of each tag less the largest.

    z_j = log Σ_i e^(a_i + A_ij) + x_j by K exponentials and a product (Rabiner 1989, "A tutorial on hidden Markov
    models and selected applications in speech recognition"), as log Σ_i e^(a_i) W_ij + c_j + x_j with
    W_ij = e^(A_ij − c_j), c_j = max_i A_ij. What is lost in such a sum is below K times the smallest number: nothing
    beside one that is so much larger. Where one is not, and where numbers cannot be looked at, all is done by K²
    exponentials instead.
    """
    number = torch.finfo(scores.dtype)
    columns = transitions.detach().amax(0)
    weights = (transitions - columns).exp()
    for exact in (True,) if watched() is not None or scores.numel() == 0 else (False, True):
        steps, a, least = [], state, scores.new_zeros(())
        for t, x in enumerate(scores.unbind(1)):
            if exact:
                z = (a[:, :, None] + transitions).logsumexp(1) + x
            else:
                logs = (a.exp() @ weights).log()
                least = torch.minimum(least, logs.detach().amin())
                z = logs + columns + x
            top = z.detach().amax(1, keepdim=True)
            on = None if lengths is None else (t < lengths)[:, None]
            steps.append(top if on is None else torch.where(on, top, 0))
            a = z - top if on is None else torch.where(on, z - top, a)
        if exact or least >= math.log(number.tiny / number.eps):
            break
    return steps, a


def score(scores: Tensor, chain: Chain, tags: Tensor, lengths: Tensor | None) -> Score:
    """The score of n sequences for each row: `tags` (batch, time ≥ 1, n), of which any are given as padding."""
    size = scores.shape[2]
    between = chain.transitions.reshape(-1).index_select(0, (tags[:, :-1] * size + tags[:, 1:]).flatten())
    before = torch.cat([chain.start[tags[:, :1]], between.view_as(tags[:, 1:])], 1)
    steps = scores.gather(2, tags) + before
    if lengths is None:
        return Score(steps, chain.end[tags[:, -1]])
    ends = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, tags.shape[2])
    last = torch.where(lengths[:, None] > 0, chain.end[tags.gather(1, ends)[:, 0]], 0)
    return Score(torch.where(live(lengths, tags.shape[1])[..., None], steps, 0), last)


def live(lengths: Tensor, time: int) -> Tensor:
    """(batch, time) bool: the steps that are no padding."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def best(scores: Tensor, chain: Chain, lengths: Tensor | None) -> Tensor:
    """The best sequence of each row (Viterbi 1967): (batch, time ≥ 1), anything beyond a row's length."""
    if compiled_chain.available(scores, *chain, lengths):
        return compiled_chain.best(scores, chain, lengths)
    return n_best(scores, chain, 1, lengths)[0][..., 0]


def n_best(scores: Tensor, chain: Chain, n: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The n best sequences of each row, the best first: (batch, time ≥ 1, n), anything beyond a row's length.

    Each step keeps the n best ways to each tag (Schwartz & Chow 1990). And whether there are so many: (batch, n) bool.
    """
    batch, size = scores.shape[0], scores.shape[2]
    first, rest, further = _parted(scores, lengths)
    sums = scores.new_full((batch, n, size), -torch.inf)
    sums[:, 0] = chain.start + first
    stay = torch.arange(n * size, device=scores.device).view(1, n, size).expand(batch, n, size)
    before = []
    for t, x in enumerate(rest.unbind(1)):
        new, place = _merged(sums, chain.transitions)
        new = new + x[:, None]
        new = new - new[:, :1].amax(2, keepdim=True)
        if further is not None:
            on = (t < further)[:, None, None]
            new, place = torch.where(on, new, sums), torch.where(on, place, stay)
        sums = new
        before.append(place.flatten(1))
    total, place = (sums + chain.end).flatten(1).topk(n, 1)
    found = [place]
    for steps in before[::-1]:
        found.append(steps.gather(1, found[-1]))
    return torch.stack(found[::-1], 1) % size, total > -torch.inf


def _merged(sums: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor]:
    """Of the n best ways to each tag before, (batch, n, K), best first, the n best to each tag after it.

    Since each tag's ways are in order, only its first that is not taken can be the next best: K at a time compete.

    Returns:
        Their sums, and of what they go on from the place among n · K.
    """
    batch, n, size = sums.shape
    if n == 1:
        return (sums[:, 0, :, None] + transitions).max(1, keepdim=True)
    ways = F.pad(sums, (0, 0, 0, 1), value=-torch.inf).flatten(1)
    heads, ranks = sums[:, 0, :, None] + transitions, torch.zeros_like(transitions, dtype=torch.int64)
    ranks, further = ranks.repeat(batch, 1, 1), transitions.expand(batch, -1, -1)
    found, places = [], []
    for _ in range(n):
        value, tag = heads.max(1, keepdim=True)
        rank = ranks.gather(1, tag)
        place = rank * size + tag
        found.append(value)
        places.append(place)
        heads.scatter_(1, tag, ways.gather(1, (place + size)[:, 0])[:, None] + further.gather(1, tag))
        ranks.scatter_(1, tag, rank + 1)
    return torch.cat(found, 1), torch.cat(places, 1)
