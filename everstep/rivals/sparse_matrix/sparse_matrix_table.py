"""A sparse non-negative matrix of features and words, which may be mapped from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.rivals.sparse_matrix.context_kinds import Ints, Kind, context_keys
from everstep.rivals.sparse_matrix.pair_counts import places
from everstep.storage.array_file import array_pieces, damage_told, mapped_arrays

Floats = NDArray[np.float64]
_FORMAT = "everstep-sparse-matrix-1"
_FIELDS = ("keys", "pairs", "sums", "values")


class SparseMatrixTable:
    """p(w | h) = Σ_f M(f, w) / Σ_f Σ_v M(f, v) over the features f of what stands before w, M ≥ 0 (Shazeer 2015).

    A further feature is always there: the uniform distribution with weight u, so that no word is impossible. A state
    (rows, reach) holds the last words, −1 where there is none.

    Args:
        vocabulary: V.
        kinds: the kinds of features.
        keys: of each kind, (U,) int64 ascending, the numbers of its contexts (`context_keys`).
        pairs: of each kind, (P,) int64 ascending: place of the context · V + word.
        sums: of each kind, (U,) float64, Σ_v M(f, v).
        values: of each kind, (P,) float32, M.
        uniform: u.

    >>> one = [np.array([0])], [np.array([1])], [np.array([3.0])], [np.array([3.0], np.float32)]
    >>> table = SparseMatrixTable(2, [()], *one, 1.0)
    >>> np.exp(table.step(np.array([0]), table.initial_state(1))[0]).tolist()
    [[0.125, 0.875]]
    """

    def __init__(
        self,
        vocabulary: int,
        kinds: Sequence[Kind],
        keys: Sequence[Ints],
        pairs: Sequence[Ints],
        sums: Sequence[Floats],
        values: Sequence[NDArray[np.float32]],
        uniform: float,
    ):
        self.vocabulary, self.kinds, self.uniform = vocabulary, [*kinds], uniform
        self.keys, self.pairs, self.sums, self.values = [*keys], [*pairs], [*sums], [*values]

    @property
    def reach(self) -> int:
        """The largest distance of a word that matters."""
        return max((distance for kind in self.kinds for distance in kind), default=0)

    @property
    def parameters(self) -> int:
        """Number of entries of the matrix."""
        return sum(map(len, self.values))

    def described(self) -> str:
        """Its sizes."""
        return f"{len(self.kinds)} kinds, {sum(map(len, self.keys)):,} features, {self.parameters:,} entries"

    def initial_state(self, rows: int) -> Ints:
        """The state before any word, (rows, reach)."""
        return np.full((rows, self.reach), -1, np.int64)

    def score(
        self, inputs: Ints, targets: Ints, state: Ints, resets: NDArray[np.bool_] | None = None
    ) -> tuple[Floats, Ints]:
        """log p of each target after the inputs up to it, and the state after the last input.

        Args:
            inputs: (rows, T) words.
            targets: (rows, T) words.
            state: before the first input.
            resets: (rows, T), whether nothing before an input counts.
        """
        (rows, time), reach = inputs.shape, self.reach
        line = np.concatenate((state, inputs), 1)
        steps = np.arange(time)
        first = np.full((rows, time), -reach - 1)
        if resets is not None:
            first = np.maximum.accumulate(np.where(resets, steps, first), 1)
        words = []
        for distance in range(1, reach + 1):
            word = line[:, reach - distance + 1 : reach - distance + 1 + time]
            words.append(np.where(steps - distance + 1 >= first, word, -1).ravel())
        above = np.full(rows * time, self.uniform / self.vocabulary)
        below = np.full(rows * time, self.uniform)
        for kind, keys in enumerate(self.keys):
            context = self._contexts(kind, keys, words, rows * time)
            there = np.flatnonzero(context >= 0)
            context = context[there]
            below[there] += self.sums[kind][context]
            pair = places(self.pairs[kind], context * self.vocabulary + targets.ravel()[there])
            hit = pair >= 0
            above[there[hit]] += self.values[kind][pair[hit]]
        kept = first[:, -1:] if time else np.full((rows, 1), -reach - 1)
        last = np.arange(time - reach, time)
        final = np.where(last >= kept, line[:, line.shape[1] - reach :], -1)
        log_p: Floats = (np.log(above) - np.log(below)).reshape(rows, time)
        return log_p, final

    def _contexts(self, kind: int, keys: Ints, words: Sequence[Ints], count: int) -> Ints:
        """The place of the context of a kind before each of `count` words, −1 where it is new."""
        if not self.kinds[kind]:
            return np.zeros(count, np.int64)
        numbers, there = context_keys(self.kinds[kind], words)
        return np.where(there, places(keys, numbers), -1)

    def step(self, words: Ints, state: Ints) -> tuple[NDArray[np.float32], Ints]:
        """log p of every next word (rows, V) after words (rows,), and the new state."""
        rows = len(words)
        state = np.concatenate((state, words[:, None]), 1)[:, 1:] if self.reach else state
        before = [state[:, self.reach - distance] for distance in range(1, self.reach + 1)]
        found = np.full((rows, self.vocabulary), self.uniform / self.vocabulary)
        for kind, keys in enumerate(self.keys):
            for row, place in enumerate(self._contexts(kind, keys, before, rows)):
                if place < 0:
                    continue
                low = int(place) * self.vocabulary
                here = slice(*np.searchsorted(self.pairs[kind], [low, low + self.vocabulary]))
                found[row, self.pairs[kind][here] - low] += self.values[kind][here]
        found /= found.sum(1, keepdims=True)
        return np.log(found).astype(np.float32), state

    def pieces(self) -> Iterator[bytes]:
        """The content of a file that `mapped` maps, in pieces."""
        kinds = {"keys": "<i8", "pairs": "<i8", "sums": "<f8", "values": "<f4"}
        arrays = {
            f"{name}.{kind}": np.asarray(array, kinds[name])
            for name in _FIELDS
            for kind, array in enumerate(getattr(self, name))
        }
        about = {"format": _FORMAT, "vocabulary": str(self.vocabulary), "uniform": repr(float(self.uniform))}
        return array_pieces(arrays, {**about, "kinds": json.dumps(self.kinds, allow_nan=False)})

    @classmethod
    def mapped(cls, path: Path) -> SparseMatrixTable:
        """Map a file of `pieces` into memory; nothing but its header is read.

        Raises:
            RunError: the file is missing, damaged, or another one.
        """
        with damage_told(path, "a sparse matrix"):
            arrays, about = mapped_arrays(path, _FORMAT)
            kinds = [tuple(int(distance) for distance in kind) for kind in json.loads(about["kinds"])]
            parts: list[list[Any]] = [[arrays[f"{name}.{kind}"] for kind in range(len(kinds))] for name in _FIELDS]
            keys, pairs, sums, values = parts
            if [*map(len, keys)] != [*map(len, sums)] or [*map(len, pairs)] != [*map(len, values)]:
                raise ValueError("its arrays have different lengths")
            return cls(int(about["vocabulary"]), kinds, keys, pairs, sums, values, float(about["uniform"]))
