"""Kinds of features of what stands before a word: n-grams and skip-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Kind: TypeAlias = tuple[int, ...]
"""The distances of a feature's words from the predicted word, rising: (1, 2) are the two words before it."""

_GOLDEN, _BITS = 0x9E3779B97F4A7C15, (1 << 64) - 1
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def context_kinds(order: int, skips: int, skip_words: int) -> tuple[Kind, ...]:
    """The kinds of n-grams up to `order`, the empty context first, and of skip-grams.

    A skip-gram has r remote words, s skipped ones and a adjacent ones (Shazeer 2015): r ≥ 1, 1 ≤ s ≤ `skips`, r + a ≤
    `skip_words`.

    >>> context_kinds(3, 1, 2)
    ((), (1,), (1, 2), (2,), (1, 3), (2, 3))
    """
    found: list[Kind] = [tuple(range(1, n)) for n in range(1, order + 1)]
    for words in range(1, skip_words + 1):
        for skipped in range(1, skips + 1):
            for adjacent in range(words - 1, -1, -1):
                remote = range(adjacent + skipped + 1, words + skipped + 1)
                found.append((*range(1, adjacent + 1), *remote))
    return tuple(found)


def context_keys(kind: Kind, words: Sequence[Ints]) -> tuple[Ints, NDArray[np.bool_]]:
    """A number of 64 bits for each context of a kind, and where there is one.

    Args:
        kind: the distances.
        words: for each distance from 1 on, the word there before each place (N,), −1 where there is none.

    Numbers of different contexts agree with a probability of 2⁻⁶⁴ (SplitMix64; Steele 2014).
    """
    there = np.ones(len(words[0]), np.bool_)
    found = np.zeros(len(words[0]), np.uint64)
    for distance in kind:
        word = words[distance - 1]
        there &= word >= 0
        found = _mixed(found + word.astype(np.uint64) + np.uint64(distance * _GOLDEN & _BITS))
    return found.view(np.int64), there


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def words_before(tokens: NDArray[np.integer], starts: Ints, begin: int | None, reach: int) -> list[Ints]:
    """For each distance from 1 to `reach`, the word there before each token of a text, −1 before its sequence.

    Args:
        tokens: (T,).
        starts: where each sequence begins.
        begin: a symbol before each sequence, or None.
        reach: the largest distance; at least 1 is given.
    """
    total = len(tokens)
    first = np.zeros(total, np.int64)
    first[starts[starts < total]] = starts[starts < total]
    seen = np.arange(total) - np.maximum.accumulate(first)  # words of the sequence before each token
    found = []
    for distance in range(1, max(reach, 1) + 1):
        word = np.full(total, -1, np.int64)
        word[distance:] = tokens[: max(total - distance, 0)]
        word[seen < distance] = -1
        if begin is not None:
            word[seen == distance - 1] = begin
        found.append(word)
    return found
