"""Finished sequences of a search, and their reconstruction from its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A finished sequence.

    Attributes:
        tokens: the tokens, without prompt and end token.
        log_p: log p of `tokens` and of the end token, in nats.
        score: the score for ranking, see `Ranking`.
        ended: whether it ended by itself, rather than by the maximal length.
        token_log_p: log p of each token, and of the end token if there is one.
        attention: (len(token_log_p), S), the attention of each step over the source; None without attention.
    """

    tokens: list[int]
    log_p: float
    score: float
    ended: bool
    token_log_p: list[float]
    attention: Tensor | None


class Step(NamedTuple):
    """The choice of a step of the search: C hypotheses, each extending a row by one token."""

    row: Tensor
    """(C,) the extended row"""
    token: Tensor
    """(C,)"""
    log_p: Tensor
    """(C,) log p of the hypothesis, in nats"""
    lives: Tensor
    """(R',) indices of the C hypotheses that are the rows of the next step"""
    attention: Tensor | None
    """(R, S) attention of the rows"""


def slots(lane: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """For sorted `lane` (n,): the index of each entry within its lane (n,), and the size of each lane (lanes,).

    >>> slots(torch.tensor([0, 0, 2]), 3)[0].tolist()
    [0, 1, 0]
    """
    counts = torch.bincount(lane, minlength=lanes)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(lane), device=lane.device) - starts[lane], counts


class Finished:
    """The best finished sequences of each lane, as indices into the steps of the search."""

    def __init__(self, lanes: int, n_best: int, like: Tensor):
        self.score = like.new_full((lanes, n_best), -torch.inf)
        """(lanes, n_best) in falling order; −∞ for missing ones."""
        self._entry = torch.zeros(lanes, n_best, dtype=torch.int64, device=like.device)
        self._entries: list[Tensor] = []  # (3, E): step, index in its choice, whether it ended by itself
        self._count = 0

    def add(self, lane: Tensor, score: Tensor, step: int, place: Tensor, ended: Tensor) -> None:
        """Add sequences (E,), in the order of their lanes."""
        lanes, n_best = self.score.shape
        slot, counts = slots(lane, lanes)
        most = int(counts.max())
        new_score = self.score.new_full((lanes, most), -torch.inf)
        new_entry = torch.zeros(lanes, most, dtype=torch.int64, device=lane.device)
        new_score[lane, slot] = score
        new_entry[lane, slot] = torch.arange(self._count, self._count + len(lane), device=lane.device)
        self._entries.append(torch.stack([torch.full_like(place, step), place, ended.to(place)]))
        self._count += len(lane)
        self.score, best = torch.cat([self.score, new_score], 1).topk(n_best)
        self._entry = torch.cat([self._entry, new_entry], 1).gather(1, best)

    def read(self, steps: list[Step], end: int | None, widths: list[int] | None) -> list[list[Hypothesis]]:
        """The sequences of each lane, best first; `widths` are the source lengths of the lanes."""
        found: list[list[Hypothesis]] = [[] for _ in self.score]
        if not self._entries:
            return found
        there = self.score > -torch.inf
        last, place, ended = torch.cat(self._entries, 1)[:, self._entry[there]]
        tokens, log_p, attention = _traced(steps, last, place)
        step_log_p = log_p.diff(dim=1, prepend=log_p.new_zeros(len(log_p), 1))
        rows = zip(
            there.nonzero()[:, 0].tolist(), last.tolist(), self.score[there].tolist(), ended.bool().tolist(),
            tokens.tolist(), log_p.tolist(), step_log_p.tolist(), strict=True,
        )  # fmt: skip
        for n, (lane, at, score, own, row_tokens, row_log_p, row_step_log_p) in enumerate(rows):
            width = None if widths is None else widths[lane]
            found[lane].append(
                Hypothesis(
                    tokens=row_tokens[: at + (end is None)],
                    log_p=row_log_p[at],
                    score=score,
                    ended=own,
                    token_log_p=row_step_log_p[: at + 1],
                    attention=None if attention is None else attention[n, : at + 1, :width].clone(),
                )
            )
        return found


def _traced(steps: list[Step], last: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, cumulative log p and attention (N, T, …) of the sequences at index `place` of step `last`."""
    tokens = last.new_zeros(len(last), len(steps))
    log_p = steps[0].log_p.new_zeros(len(last), len(steps))
    first = steps[0].attention
    attention = None if first is None else first.new_zeros(len(last), len(steps), first.shape[1])
    place = place.clone()
    for t in range(len(steps) - 1, -1, -1):
        step = steps[t]
        inside = (last >= t).nonzero()[:, 0]
        at = place[inside]
        tokens[inside, t], log_p[inside, t] = step.token[at], step.log_p[at]
        row = step.row[at]
        if attention is not None and step.attention is not None:
            attention[inside, t] = step.attention[row]
        if t:
            place[inside] = steps[t - 1].lives[row]
    return tokens, log_p, attention
