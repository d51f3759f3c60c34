"""Sequences in groups of equal length, so that sorting them needs little memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.storage.scratch import release, scratch

Ints = NDArray[np.int64]
_BLOCK = 1 << 16  # sequences looked at together


class LengthGroups(NamedTuple):
    """N sequences in G groups, of equal lengths each, in ascending order. Memory is that of the groups.

    >>> groups = LengthGroups.of(np.array([3, 1, 3, 2]))
    >>> groups.lengths.tolist(), groups.ends.tolist(), groups.sorted(np.array([2, 3, 0, 1])).tolist()
    ([1, 2, 3], [1, 2, 4], [1, 3, 2, 0])

    Attributes:
        lengths: (G,) the length of the sequences of each group; ascending.
        ends: (G,) how many sequences there are in this group and those before it.
        which: (N,) the group of each sequence, mapped from a temporary file.
    """

    lengths: Ints
    ends: Ints
    which: NDArray[Any]

    @classmethod
    def of(cls, lengths: NDArray[Any], ties: NDArray[Any] | None = None) -> LengthGroups:
        """Groups of sequences of equal lengths (N,) and, if given, equal `ties` (N,), by which they are then sorted."""
        second = np.broadcast_to(np.int64(0), len(lengths)) if ties is None else ties
        step = 1 + max((int(second[some].max()) for some in _blocks(len(second))), default=0)

        def keys() -> Iterator[Ints]:
            for some in _blocks(len(lengths)):
                yield lengths[some].astype(np.int64) * step + second[some]
                release(lengths, second)

        known, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for block in keys():
            found, many = np.unique(block, return_counts=True)
            both = np.union1d(known, found)
            added = np.zeros(len(both), np.int64)
            added[np.searchsorted(both, known)] = counts
            added[np.searchsorted(both, found)] += many
            known, counts = both, added
        which = scratch((np.searchsorted(known, block) for block in keys()), np.min_scalar_type(len(known)))
        return cls(known // step, np.cumsum(counts), which)

    @property
    def number(self) -> int:
        """N."""
        return len(self.which)

    @property
    def before(self) -> Ints:
        """(G,) how many sequences there are in the groups before each."""
        return np.append(0, self.ends[:-1])

    @property
    def steps(self) -> Ints:
        """(G,) the sum of the lengths of the sequences in this group and those before it."""
        return np.cumsum(self.lengths * (self.ends - self.before))

    def lengths_at(self, places: Ints) -> Ints:
        """The lengths of sequences at these places of the sorted order."""
        return self.lengths[np.searchsorted(self.ends, places, side="right")]

    def sorted(self, sequences: NDArray[Any]) -> NDArray[Any]:
        """All N numbers of sequences, sorted by group; those of one group stay in the order that they are given in."""
        found = scratch((np.zeros(len(sequences[some])) for some in _blocks(len(sequences))), sequences.dtype)
        free = self.before
        for some in _blocks(len(sequences)):
            group = self.which[sequences[some]].astype(np.int64)
            order = np.argsort(group, kind="stable")
            group = group[order]
            earlier = np.arange(len(group)) - np.searchsorted(group, group)  # of the same group, in this block
            found[free[group] + earlier] = sequences[some][order]
            free += np.bincount(group, minlength=len(free))
            release(self.which, found, sequences)
        return found


def numbers(number: int) -> NDArray[Any]:
    """0 to N − 1, mapped from a temporary file, in as few bytes as they need."""
    blocks = (np.arange(some.start, min(some.stop, number)) for some in _blocks(number))
    return scratch(blocks, np.min_scalar_type(number))


def _blocks(number: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, number, _BLOCK))
