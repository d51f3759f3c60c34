"""Counts of features, and of features with the words that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.rivals.sparse_matrix.context_kinds import Ints, Kind, context_keys


class PairCounts(NamedTuple):
    """The contexts of one kind that a text has, and what follows them.

    Attributes:
        keys: (U,) int64, ascending, the numbers of the contexts (`context_keys`).
        pairs: (P,) int64, ascending: place of the context in `keys`, times V, plus the word that follows.
        counts: (P,) occurrences of the pair.
        totals: (U,) occurrences of the context.
    """

    keys: Ints
    pairs: Ints
    counts: Ints
    totals: Ints

    def find(self, keys: Ints, there: NDArray[np.bool_]) -> Ints:
        """The place of each context, −1 where it did not occur."""
        return np.where(there, places(self.keys, keys), -1)

    def find_pairs(self, contexts: Ints, words: Ints, vocabulary: int) -> Ints:
        """The place of each pair, −1 where it did not occur."""
        return np.where(contexts >= 0, places(self.pairs, contexts * vocabulary + words), -1)


def places(rising: Ints, wanted: Ints) -> Ints:
    """Where each number is in a rising array, −1 where it is not."""
    if not len(rising):
        return np.full(wanted.shape, -1, np.int64)
    found = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
    return np.where(rising[found] == wanted, found, -1)


def count_pairs(kind: Kind, tokens: NDArray[Any], before: Sequence[Ints], vocabulary: int) -> PairCounts:
    """Count the contexts of a kind in a text, with the words that follow.

    Args:
        kind: the distances.
        tokens: (T,) below `vocabulary`.
        before: the words at each distance (`words_before`).
        vocabulary: V.

    >>> from everstep.rivals.sparse_matrix.context_kinds import words_before
    >>> tokens = np.array([1, 2, 1, 2])
    >>> found = count_pairs((1,), tokens, words_before(tokens, np.array([0]), 0, 1), 3)
    >>> sorted(found.totals.tolist()), sorted(found.counts.tolist())
    ([1, 1, 2], [1, 1, 2])
    """
    numbers, there = context_keys(kind, before)
    keys, inverse, totals = np.unique(numbers[there], return_inverse=True, return_counts=True)
    pairs, counts = np.unique(inverse.astype(np.int64) * vocabulary + tokens[there], return_counts=True)
    return PairCounts(keys, pairs, counts, totals)
