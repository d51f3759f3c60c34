"""Paths of labels and blanks over time: the best one, and when each label of a text was said."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class Placed(NamedTuple):
    """A label and the steps of its path, from `start` up to `stop` (exclusive)."""

    label: int
    start: int
    stop: int


def best_path(log_p: Floats) -> list[int]:
    """The labels that the likeliest path spells, of log p (T, K + 1) of K labels and the blank K.

    The path takes the likeliest class of each step; repetitions count once, and then blanks are left out.

    >>> best_path(np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.6, 0.4]])))
    [0, 0]
    """
    path = log_p.argmax(1)
    begins = np.append(True, path[1:] != path[:-1])[: len(path)]
    return [int(label) for label in path[begins & (path != log_p.shape[1] - 1)]]


def alignment(log_p: Floats, labels: list[int]) -> list[Placed]:
    """The likeliest path that spells the labels, by dynamic programming (Viterbi): where it places each of them.

    The states are a blank, the first label, a blank, …, the last label, a blank. From one step to the next a path stays
    in a state, goes to the next one, or leaves out a blank between two labels that differ.

    Args:
        log_p: (T, K + 1), of K labels and the blank K.
        labels: U labels that T steps can spell; see `everstep.heads.ctc.steps_needed`.

    Raises:
        ValueError: they cannot.
    """
    blank = log_p.shape[1] - 1
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    skips = np.append([False, False], (states[2:] != blank) & (states[2:] != states[:-2]))[: len(states)]
    score = np.full(len(states), -np.inf)
    moves = np.zeros((len(log_p), len(states)), np.int64)
    for step, row in enumerate(log_p):
        if not step:
            score[:2] = row[states[:2]]
            continue
        one, two = np.append(-np.inf, score[:-1]), np.append([-np.inf] * 2, score[:-2])[: len(states)]
        choices = np.stack([score, one, np.where(skips, two, -np.inf)])
        moves[step] = choices.argmax(0)
        score = choices.max(0) + row[states]
    if not len(log_p) or score[-2:].max() == -np.inf:
        if not labels and not len(log_p):
            return []
        raise ValueError(f"alignment: {len(log_p)} steps cannot spell {len(labels)} labels")
    return _traced(moves, labels, len(states) - 1 - int(len(states) > 1 and score[-2] > score[-1]))


def _traced(moves: NDArray[np.int64], labels: list[int], state: int) -> list[Placed]:
    """The places of the labels on the path that ends in `state`."""
    steps: list[list[int]] = [[] for _ in labels]
    for step in range(len(moves) - 1, -1, -1):
        if state % 2:
            steps[state // 2].append(step)
        state -= int(moves[step, state])
    return [Placed(label, found[-1], found[0] + 1) for label, found in zip(labels, steps, strict=True)]
