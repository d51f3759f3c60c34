"""The recursions of a linear chain of tags: the sum over all sequences, the best sequence, the n best."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.backends.fused import backend as fused
from everstep.cell import Cell, scan
from everstep.native.plain_memory import plain, watched

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


class _Sum(Cell):
    """One step of log Z: z_j = log Σ_i e^(a_i + A_ij) + x_j. The output is z's largest part, and the state a the rest.

    The output carries no gradient, since the state loses what it adds.
    """

    transitions: Tensor
    columns: Tensor

    def __init__(self, tags: int, features: int = 1):
        super().__init__(tags, features)
        for name in ("transitions", "columns"):  # lent for each call
            self.register_parameter(name, None)

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, self.input_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        z = (state[:, :, None] + self.transitions).logsumexp(1) + x
        top = z.amax(1, keepdim=True).detach()
        return top, z - top


class _ScaledSum(_Sum):
    """The same by K exponentials instead of K² and a product (Rabiner 1989, "A tutorial on hidden Markov models …").

    log Σ_i e^(a_i + A_ij) = log Σ_i e^(a_i) W_ij + c_j with W_ij = e^(A_ij − c_j), c_j = max_i A_ij. The second output
    is the largest −log Σ_i e^(a_i) W_ij: where it is large, numbers too small to be held may be missing in the sum.
    """

    def __init__(self, tags: int):
        super().__init__(tags, 2)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logs = (state.exp() @ self.transitions).log()
        z = logs + self.columns + x
        top = z.amax(1, keepdim=True).detach()
        return torch.cat([top, -logs.amin(1, keepdim=True).detach()], 1), z - top


class _Best(_Sum):
    """One step of the best sequence (Viterbi 1967): z_j = max_i (a_i + A_ij) + x_j, less its largest part."""

    def __init__(self, tags: int):
        super().__init__(tags, tags)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        z = (state[:, :, None] + self.transitions).amax(1) + x
        z = z - z.amax(1, keepdim=True)
        return z, z


_idle: dict[tuple[type[_Sum], int, torch.dtype], list[_Sum]] = {}
"""Cells that no call uses at the moment. They hold no numbers, only what the engine knows of them."""


def _run(
    kind: type[_Sum], scores: Tensor, state: Tensor, lengths: Tensor | None, **lent: Tensor
) -> tuple[Tensor, Tensor]:
    """A scan of a cell that borrows these tensors."""
    idle = _idle.setdefault((kind, scores.shape[2], scores.dtype), [])
    try:
        cell = idle.pop()
    except IndexError:
        cell = kind(scores.shape[2])
        fused.assume_static(cell)
    held: dict[str, Tensor | None] = cell._parameters  # type: ignore[assignment]
    try:
        held.update(lent)
        backend = "auto" if plain(*lent.values()) else "reference"
        return scan(cell, scores, state, lengths=lengths, backend=backend)
    finally:
        held.update(dict.fromkeys(lent))
        idle.append(cell)


def log_sum(scores: Tensor, chain: Chain, lengths: Tensor | None) -> Score:
    """log Σ_y e^(score of y) over all sequences y of each row's length, from scores (batch, time ≥ 1, K)."""
    first, rest, further = _parted(scores, lengths)
    z = chain.start + first
    top = z.detach().amax(1, keepdim=True)
    steps, state = _sum(rest, z - top, chain.transitions, further)
    last = (state + chain.end).logsumexp(1, keepdim=True)
    if lengths is not None:
        top, last = torch.where(lengths[:, None] > 0, top, 0), torch.where(lengths[:, None] > 0, last, 0)
    return Score(torch.cat([top[:, None], steps], 1), last)


def _parted(scores: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The first step, the others, and how many others there are."""
    first, rest = scores.split([1, scores.shape[1] - 1], 1)
    if lengths is None:
        return first[:, 0], rest, None
    return torch.where(lengths[:, None] > 0, first[:, 0], 0), rest, (lengths - 1).clamp(min=0)


def _sum(scores: Tensor, state: Tensor, transitions: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each step adds to log Z (batch, time, 1), and the state after the last."""
    if watched() is None and scores.numel():  # numbers that can be looked at
        number = torch.finfo(scores.dtype)
        columns = transitions.detach().amax(0)
        weights = (transitions - columns).exp()
        ys, after = _run(_ScaledSum, scores, state, lengths, transitions=weights, columns=columns)
        # what is lost in a sum is below K times the smallest number: nothing, beside a sum that is so much larger
        if ys[..., 1].max() <= -math.log(number.tiny / number.eps):
            return ys[..., :1], after
    return _run(_Sum, scores, state, lengths, transitions=transitions)


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
    first, rest, further = _parted(scores, lengths)
    start = chain.start + first
    steps, _ = _run(_Best, rest, start, further, transitions=chain.transitions)
    sums = torch.cat([start[:, None], steps], 1)
    last = sums[:, -1] if further is None else sums[torch.arange(len(sums), device=sums.device), further.long()]
    ending = (last + chain.end).argmax(1)
    into = chain.transitions.t().contiguous()
    found = [ending]
    for t in range(scores.shape[1] - 2, -1, -1):
        tag = (sums[:, t] + into.index_select(0, found[-1])).argmax(1)
        found.append(tag if further is None else torch.where(t < further, tag, ending))
    return torch.stack(found[::-1], 1)


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
