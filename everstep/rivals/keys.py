"""Baselines of music: the frequency of each key, alone and given itself a step before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Rolls = Sequence[NDArray[np.bool_]]
ADDED = 0.5
"""What each count begins with (Krichevsky & Trofimov 1981)."""


def key_rivals(train: Rolls, held_out: Rolls) -> Iterator[tuple[str, float]]:
    """Names of baselines, and −log p of a chord on average, in nats, by frequencies of the training pieces.

    "key frequencies": p(x_tk) by how often key k sounds. "keys as before": p(x_tk | x_{t-1,k}), with silence before a
    piece; a key that sounds goes on, and one that does not begins, with a probability of its own.

    >>> piece = np.array([[True], [True], [True], [False]])
    >>> [(name, round(nats, 2)) for name, nats in key_rivals([piece] * 50, [piece])]
    [('key frequencies', 0.56), ('keys as before', 0.48)]

    Args:
        train: pieces (steps, K) of the training split.
        held_out: pieces to score.
    """
    now, before = _now_and_before(train)
    asked, asked_before = _now_and_before(held_out)
    yield "key frequencies", _nats(asked, _frequency(now.sum(0), len(now)))
    stays = _frequency((now & before).sum(0), before.sum(0))
    begins = _frequency((now & ~before).sum(0), (~before).sum(0))
    yield "keys as before", _nats(asked, np.where(asked_before, stays, begins))


def _now_and_before(rolls: Rolls) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """All steps of all pieces, and the step before each, (steps, K)."""
    before = [np.concatenate([np.zeros_like(roll[:1]), roll[:-1]]) for roll in rolls]
    return np.concatenate(list(rolls)), np.concatenate(before)


def _frequency(there: NDArray[np.int64], of: NDArray[np.int64] | int) -> NDArray[np.float64]:
    return (there + ADDED) / (of + 2 * ADDED)


def _nats(asked: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """−log p of a step on average."""
    return float(-np.log(np.where(asked, p, 1 - p)).sum(1).mean())
