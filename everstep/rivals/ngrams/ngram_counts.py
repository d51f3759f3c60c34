"""Counts of the n-grams of a text, of every order up to a largest one, within a memory limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.rivals.ngrams.sorted_runs import distinct
from everstep.rivals.ngrams.workspace import Workspace
from everstep.storage.scratch import release

Ints = NDArray[np.int64]


@dataclass(eq=False)
class OrderCounts:
    """The distinct n-grams of one order n, numbered in the order of their keys.

    Attributes:
        keys: (U,) int64, ascending: number of the n-gram without its last word among those of order n - 1, times V,
            plus the last word. For n = 1 the words themselves, also those that never occur.
        raw: (U,) int64, occurrences.
        adjusted: (U,) int64, what Kneser-Ney estimates from. Below the largest order: the distinct words before the
            n-gram, plus its occurrences at the start of a sequence, where no word stands before it. At the largest
            order: occurrences.
        suffix: (U,) int64, the number of the n-gram without its first word; empty for n = 1.
    """

    keys: Ints
    raw: Ints
    adjusted: Ints
    suffix: Ints


def count_ngrams(
    tokens: NDArray[Any], starts: Ints, begin: int | None, vocabulary: int, order: int, work: Workspace
) -> list[OrderCounts]:
    """The n-grams of orders 1 to `order` that end at a token of the text; none crosses the start of a sequence.

    Args:
        tokens: (T,) ids below `vocabulary`; may be a memory map.
        starts: the start of each sequence in `tokens`.
        begin: a symbol before each sequence, which n-grams may begin with and which itself is not counted.
        vocabulary: V.
        order: the largest n.
        work: makes the arrays.

    Example: "a b a" with a begin symbol 0 and a = 1, b = 2.
        >>> one, two = count_ngrams(np.array([1, 2, 1]), np.array([0]), 0, 3, 2, Workspace(1 << 20))
        >>> two.keys.tolist(), one.adjusted.tolist(), two.adjusted.tolist()
        ([1, 5, 7], [0, 2, 1], [1, 1, 1])
    """
    text = _Text(tokens, starts, begin, work)
    ids = work.array(len(tokens), np.int64)
    zeros = np.zeros((2, vocabulary), np.int64)
    first = OrderCounts(np.arange(vocabulary), zeros[0], zeros[1], np.empty(0, np.int64))
    for block, words, seen in text.blocks(ids):
        ids[block] = words
        np.add.at(first.raw, words, 1)
        np.add.at(first.adjusted, words[seen == 0], 1)
    levels = [first]
    for n in range(2, order + 1):
        level, ids = _next_order(text, ids, n, vocabulary, work)
        for block in work.blocks(len(level.keys), level.suffix, levels[-1].adjusted):
            np.add.at(levels[-1].adjusted, level.suffix[block], 1)
        levels.append(level)
    levels[-1].adjusted[:] = levels[-1].raw
    return levels


def _next_order(text: _Text, below: Ints, n: int, vocabulary: int, work: Workspace) -> tuple[OrderCounts, Ints]:
    """Order n, and for each token the number of the n-gram that ends there (-1 where a sequence is too short).

    `below` has these numbers for order n - 1. In the result's `adjusted` are the occurrences at starts alone.
    """
    keys, raw = distinct((keys for _, _, keys, _ in text.windows(below, n, vocabulary)), work)
    level = OrderCounts(keys, raw, work.array(len(keys), np.int64), work.array(len(keys), np.int64))
    ids = work.array(len(below), np.int64)
    for block, there, block_keys, seen in text.windows(below, n, vocabulary):
        some, inverse = np.unique(block_keys, return_inverse=True)
        numbers = np.searchsorted(keys, some)[inverse]
        ids[block] = -1
        ids[block][there] = numbers
        level.suffix[numbers] = below[block][there]
        np.add.at(level.adjusted, numbers[seen == n - 1], 1)
        for array in (ids, keys, level.suffix, level.adjusted):
            release(array)
    return level, ids


class _Text:
    """A text in blocks, with the number of symbols before each token in its sequence."""

    def __init__(self, tokens: NDArray[Any], starts: Ints, begin: int | None, work: Workspace):
        self._tokens, self._starts, self._begin, self._work = tokens, starts, begin, work

    def blocks(self, *arrays: Ints) -> Iterator[tuple[slice, Ints, Ints]]:
        """Each block with its words and the symbols before each, the begin symbol included."""
        for block in self._work.blocks(len(self._tokens), self._tokens, *arrays):
            places = np.arange(block.start, block.stop)
            sequence = np.searchsorted(self._starts, places, "right") - 1
            seen = places - self._starts[sequence] + (self._begin is not None)
            yield block, self._tokens[block].astype(np.int64), seen

    def windows(self, below: Ints, n: int, vocabulary: int) -> Iterator[tuple[slice, NDArray[np.bool_], Ints, Ints]]:
        """Each block; the tokens that end an n-gram; the keys of these n-grams, and the symbols before these tokens."""
        for block, words, seen in self.blocks(below):
            prefix = np.empty_like(words)
            prefix[1:] = below[block][:-1]
            prefix[:1] = below[block.start - 1] if block.start else -1
            if n == 2 and self._begin is not None:
                prefix[seen == 1] = self._begin
            there = seen >= n - 1
            yield block, there, prefix[there] * vocabulary + words[there], seen[there]
