"""The recursions of a linear chain of tags: the sum over all sequences, the best sequence, the n best.

`compiled_chain.py` does the first two in one compiled pass over each row; here they are loops of PyTorch operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads import compiled_chain
from everstep.native.plain_memory import watched
from everstep.state import valid

NEVER = -1e30
"""The score of anything forbidden: e to it is exactly 0; unlike −∞, its differences and gradients are finite."""


class Chain(NamedTuple):
    """Scores of a chain of K tags: `transitions` (K, K) from row to column, `start` (K,) and `end` (K,)."""

    transitions: Tensor
    start: Tensor
    end: Tensor


class ChainScore(NamedTuple):
    """Scores of n sequences, or a log-sum-exp of scores (n = 1), as small summands, so that no digits are lost.

    Attributes:
        steps: (batch, time, n), the summand of each step; zero beyond a row's length.
        last: (batch, n), the summand of the end; zero for a row without steps.
    """

    steps: Tensor
    last: Tensor

    def minus(self, other: ChainScore) -> Tensor:
        """The difference, (batch, n)."""
        return (self.steps - other.steps).sum(1) + (self.last - other.last)

    def possible(self) -> Tensor:
        """Whether the sequences contain nothing forbidden: (batch, n)."""
        return (torch.minimum(self.steps.amin(1), self.last) <= NEVER / 2).logical_not()  # NaN is not forbidden


def nats(scores: Tensor, chain: Chain, lengths: Tensor | None, target: Tensor | None = None) -> Tensor:
    """−log p of the target (batch, time ≥ 1) of each row: (batch,). It is ∞ where the target is forbidden.

    Without a target: log Z = log Σ_y e^(score of y) over all sequences y; −∞ where all are forbidden.
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


def log_sum(scores: Tensor, chain: Chain, lengths: Tensor | None) -> ChainScore:
    """log Z of each row."""
    first, rest, further = _parted(scores, lengths)
    z = chain.start + first
    top = z.detach().amax(1, keepdim=True)  # without a gradient: it is added to the step and subtracted from the state
    steps, state = _sum(rest, z - top, chain.transitions, further)
    last = (state + chain.end).logsumexp(1, keepdim=True)
    if lengths is not None:
        top, last = torch.where(lengths[:, None] > 0, top, 0), torch.where(lengths[:, None] > 0, last, 0)
    return ChainScore(torch.stack([top, *steps], 1), last)


def _parted(scores: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The first step, the remaining steps, and the number of remaining steps."""
    first, rest = scores.split([1, scores.shape[1] - 1], 1)
    if lengths is None:
        return first[:, 0], rest, None
    return torch.where(lengths[:, None] > 0, first[:, 0], 0), rest, (lengths - 1).clamp(min=0)


def _sum(scores: Tensor, state: Tensor, transitions: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The summand of each step in log Z, (batch, 1), and the final state: the log-sum of each tag minus the largest.

    z_j = log Σ_i e^(a_i + A_ij) + x_j by K exponentials and a product (Rabiner 1989, "A tutorial on hidden Markov
    models and selected applications in speech recognition"), as log Σ_i e^(a_i) W_ij + c_j + x_j with
    W_ij = e^(A_ij − c_j), c_j = max_i A_ij. What underflows in such a sum is below K times the smallest
    number, negligible beside a much larger sum. Where the sum is not much larger, and where values cannot be inspected,
    K² exponentials are used instead.
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


def score(scores: Tensor, chain: Chain, tags: Tensor, lengths: Tensor | None) -> ChainScore:
    """The score of n sequences for each row: `tags` (batch, time ≥ 1, n); padding may hold any tags."""
    size = scores.shape[2]
    between = chain.transitions.reshape(-1).index_select(0, (tags[:, :-1] * size + tags[:, 1:]).flatten())
    before = torch.cat([chain.start[tags[:, :1]], between.view_as(tags[:, 1:])], 1)
    steps = scores.gather(2, tags) + before
    if lengths is None:
        return ChainScore(steps, chain.end[tags[:, -1]])
    ends = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, tags.shape[2])
    last = torch.where(lengths[:, None] > 0, chain.end[tags.gather(1, ends)[:, 0]], 0)
    return ChainScore(torch.where(valid(lengths, tags.shape[1])[..., None], steps, 0), last)


def best(scores: Tensor, chain: Chain, lengths: Tensor | None) -> Tensor:
    """The best sequence of each row (Viterbi 1967): (batch, time ≥ 1), arbitrary beyond a row's length."""
    if compiled_chain.available(scores, *chain, lengths):
        return compiled_chain.best(scores, chain, lengths)
    return n_best(scores, chain, 1, lengths)[0][..., 0]


def n_best(scores: Tensor, chain: Chain, n: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The n best sequences of each row, the best first: (batch, time ≥ 1, n), arbitrary beyond a row's length.

    Each step keeps the n best paths to each tag (Schwartz & Chow 1990). Second result: whether each exists, (batch, n).
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
    """From the n best paths to each previous tag, (batch, n, K), best first, the n best paths to each next tag.

    Since the paths of each tag are sorted, only its first unused path can be the next best: K candidates at a time.

    Returns:
        Their sums, and the indices, among n · K, of the paths that they extend.
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
