"""The table of a back-off n-gram model: sorted arrays, which may be mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.storage.array_file import array_pieces, damage_told, mapped_arrays

Ints = NDArray[np.int64]
Logs = NDArray[np.float32]
_FORMAT = "everstep-ngrams-1"


class NGramTable:
    """p(w | h) of a back-off model of order N over a vocabulary of V words, in nats.

    log p(w | h) is the entry of the n-gram h w if there is one; else log b(h) + log p(w | h'), where h' is h without
    its first word, and b(h) is 1 where h has no entry (Katz 1987). An interpolated model has the same form.

    The n-grams of an order are numbered in the order of their keys: number of the n-gram without its last word, times
    V, plus the last word. So an n-gram is found by a binary search for each of its words, and a text by N - 1 searches
    for all its words at once. A state (rows, N - 1) holds the number of the n-gram of each order 1 to N - 1 that ends
    at the last word; -1 if there is none.

    Args:
        vocabulary: V.
        keys: for each order from 2 to N, (U_n,) int64, ascending.
        log_p: for each order from 1 to N, (U_n,) float32 log p; U_1 = V.
        backoff: for each order from 1 to N - 1, (U_n,) float32 log b.

    >>> table = NGramTable(2, [np.array([1])], [np.log([0.75, 0.25]), np.log([0.5])], [np.log([0.667, 1])])
    >>> log_p, _ = table.step(np.array([0]), table.initial_state(1))
    >>> np.exp(log_p).round(2).tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, vocabulary: int, keys: Sequence[Ints], log_p: Sequence[Any], backoff: Sequence[Any]):
        self.vocabulary = vocabulary
        self.keys, self.log_p, self.backoff = list(keys), list(log_p), list(backoff)

    @property
    def order(self) -> int:
        """N."""
        return len(self.log_p)

    def __len__(self) -> int:
        """Number of n-grams of all orders."""
        return sum(map(len, self.log_p))

    @property
    def parameters(self) -> int:
        """Number of values: log p and log b of the n-grams."""
        return len(self) + sum(map(len, self.backoff))

    def initial_state(self, rows: int) -> Ints:
        """The state before any word, (rows, N - 1)."""
        return np.full((rows, self.order - 1), -1, np.int64)

    def numbers(self, n: int, prefix: Ints, words: Ints) -> Ints:
        """The numbers of n-grams, n ≥ 2, by those of their first n - 1 words and their last words; -1: no entry."""
        wanted, keys = prefix * self.vocabulary + words, self.keys[n - 2]
        if not len(keys):
            return np.full_like(wanted, -1)
        found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((prefix >= 0) & (keys[found] == wanted), found, -1)

    def advance(self, words: Ints, state: Ints) -> Ints:
        """The state after words (rows,)."""
        new = np.empty_like(state)
        for n in range(1, self.order):
            new[:, n - 1] = words if n == 1 else self.numbers(n, state[:, n - 2], words)
        return new

    def score(
        self, inputs: Ints, targets: Ints, state: Ints, resets: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float64], Ints]:
        """log p of each target after the inputs up to it, and the state after the last input.

        Args:
            inputs: (rows, T) words; each is the target before it, except at a reset and in padding.
            targets: (rows, T) words.
            state: before the first input.
            resets: (rows, T), whether nothing before an input counts.
        """
        old = resets if resets is not None else np.zeros(inputs.shape, np.bool_)
        follows = (inputs[:, 1:] == targets[:, :-1]) & ~old[:, 1:]
        context, final = inputs, np.empty_like(state)
        log_p = self.log_p[0][targets].astype(np.float64)
        for n in range(2, self.order + 1):
            final[:, n - 2] = context[:, -1]
            ends = self.numbers(n, context, targets)
            backed_off = log_p + np.where(context >= 0, _at(self.backoff[n - 2], context), 0)
            log_p = np.where(ends >= 0, _at(self.log_p[n - 1], ends), backed_off)
            first = np.where(old[:, 0], -1, self.numbers(n, state[:, n - 2], inputs[:, 0]))
            context = np.concatenate((first[:, None], np.where(follows, ends[:, :-1], -1)), 1)
        return log_p, final

    def step(self, words: Ints, state: Ints) -> tuple[Logs, Ints]:
        """log p of every next word (rows, V) after words (rows,), and the new state."""
        state = self.advance(words, state)
        log_p = np.repeat(np.asarray(self.log_p[0], np.float32)[None], len(words), 0)
        for row, numbers in enumerate(state):
            for n, number in enumerate(numbers, 2):
                if number < 0:
                    continue
                keys = self.keys[n - 2]
                here = slice(*np.searchsorted(keys, [number * self.vocabulary, (number + 1) * self.vocabulary]))
                log_p[row] += self.backoff[n - 2][number]
                log_p[row, keys[here] - number * self.vocabulary] = self.log_p[n - 1][here]
        return log_p, state

    def ngrams(self, n: int, numbers: Ints) -> Ints:
        """The words of n-grams, (rows, n), by their numbers."""
        words = np.empty((len(numbers), n), np.int64)
        for place in range(n, 1, -1):
            numbers, words[:, place - 1] = np.divmod(self.keys[place - 2][numbers], self.vocabulary)
        words[:, 0] = numbers
        return words

    def described(self) -> str:
        """The number of n-grams of each order."""
        return ", ".join(f"{len(logs):,} {n}-grams" for n, logs in enumerate(self.log_p, 1))

    def pieces(self) -> Iterator[bytes]:
        """The content of a file that `mapped` maps, in pieces."""
        found: dict[str, NDArray[Any]] = {f"keys.{n}": np.asarray(keys, "<i8") for n, keys in enumerate(self.keys, 2)}
        found |= {f"log_p.{n}": np.asarray(logs, "<f4") for n, logs in enumerate(self.log_p, 1)}
        found |= {f"backoff.{n}": np.asarray(logs, "<f4") for n, logs in enumerate(self.backoff, 1)}
        return array_pieces(found, {"format": _FORMAT, "vocabulary": str(self.vocabulary)})

    @classmethod
    def mapped(cls, path: Path) -> NGramTable:
        """Map a file of `pieces` into memory; nothing but its header is read.

        Raises:
            RunError: the file is missing, damaged, or another one.
        """
        with damage_told(path, "a table of n-grams"):
            arrays, about = mapped_arrays(path, _FORMAT)
            vocabulary = int(about["vocabulary"])
            order = sum(name.startswith("log_p.") for name in arrays)
            keys = [arrays[f"keys.{n}"] for n in range(2, order + 1)]
            log_p = [arrays[f"log_p.{n}"] for n in range(1, order + 1)]
            backoff = [arrays[f"backoff.{n}"] for n in range(1, order)]
            sizes = [vocabulary, *map(len, keys)]
            if [*map(len, log_p)] != sizes or [*map(len, backoff)] != sizes[:-1]:
                raise ValueError("its arrays have different lengths")
        return cls(vocabulary, keys, log_p, backoff)


def _at(values: Any, numbers: Ints) -> Any:
    """Values by their numbers; anything for -1."""
    return values[np.maximum(numbers, 0)] if len(values) else np.zeros(numbers.shape, np.float32)
