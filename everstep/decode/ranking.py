"""The ranking of finished sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_UNSEEN = 1e-9
"""Lower bound of the attention on a position of the source; log 0 would exclude the sequence."""


@dataclass(frozen=True)
class Ranking:
    """The score of finished sequences (Wu 2016, "Google's neural machine translation system").

    score(Y) = log p(Y) / lp(|Y|) + β Σ_s log min(Σ_t a_ts, 1), with lp(n) = ((5 + n) / 6)^α.

    |Y| counts the tokens that have a probability, including the end token; a_ts is the attention of step t on position
    s of the source. Each logarithm is at least log 1e-9.

    >>> Ranking(length_penalty=1.0).score(torch.tensor([-2.0, -3.0]), torch.tensor([1, 7])).tolist()
    [-2.0, -1.5]
    """

    length_penalty: float = 0.0
    coverage_penalty: float = 0.0

    def score(self, log_p: Tensor, length: Tensor | int, missed: Tensor | float = 0.0) -> Tensor:
        """The scores (n,), from log p (n,) in nats, |Y| and the result of `missed`."""
        return log_p / self._divisor(log_p, length) + self.coverage_penalty * missed

    def missed(self, covered: Tensor, inside: Tensor) -> Tensor:
        """Σ_s log min(Σ_t a_ts, 1), (n,) ≤ 0, from the sums over t (n, S) and the mask `inside` the source (n, S)."""
        return covered.clamp(_UNSEEN, 1).log().masked_fill(~inside, 0).sum(-1)

    def bound(self, log_p: Tensor, longest: Tensor) -> Tensor:
        """An upper bound (n,) of the scores of all continuations with |Y| at most `longest`.

        log p ≤ 0 decreases and the divisor grows; the coverage term is at most 0.
        """
        return log_p / self._divisor(log_p, longest)

    def _divisor(self, log_p: Tensor, length: Tensor | int) -> Tensor:
        divisor: Tensor = ((5 + torch.as_tensor(length, dtype=log_p.dtype)) / 6) ** self.length_penalty
        return divisor
