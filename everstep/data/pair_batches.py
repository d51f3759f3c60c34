"""Batches of pairs of token sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable
from everstep.data.bucket_order import Bucketed, Ints, Padded
from everstep.storage.scratch import release, scratch

_BLOCK = 1 << 10  # sequences looked at together


class TokenSequences(NamedTuple):
    """N sequences of tokens, in one array or in several that count as one.

    Attributes:
        tokens: the tokens of all, (T,) of any integer type, or `JoinedTokens`.
        starts: (N,) int64.
        lengths: (N,) of any integer type.
    """

    tokens: Any
    starts: Ints
    lengths: NDArray[Any]

    @classmethod
    def of(cls, tokens: NDArray[Any], lengths: NDArray[Any]) -> TokenSequences:
        """TokenSequences of these lengths, one after another in one array."""
        return cls(tokens, np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def joined(cls, parts: list[TokenSequences], chosen: list[Ints | None] | None = None) -> TokenSequences:
        """The sequences of all parts, one after another; there is at least one part. No token is copied.

        Args:
            parts: sequences.
            chosen: for each part the numbers of those to take, which may repeat; None: all, once.
        """
        tokens = JoinedTokens([part.tokens for part in parts])
        each = list(zip(parts, [0, *tokens.ends[:-1]], chosen or [None] * len(parts), strict=True))
        starts = (part.starts[rows] + at for part, at, some in each for rows in _rows(part, some))
        lengths = (part.lengths[rows] for part, _, some in each for rows in _rows(part, some))
        return cls(tokens, scratch(starts, np.int64), scratch(lengths, np.int32))

    def select(self, rows: Ints | slice) -> TokenSequences:
        """Some of them, as one array."""
        lengths = self.lengths[rows]
        return TokenSequences.of(self.tokens[Padded.of(self.starts[rows], lengths).places], lengths)

    def parts(self) -> Iterator[NDArray[Any]]:
        """The tokens of all sequences, of some sequences at a time."""
        for rows in _rows(self, None):
            yield self.select(rows).tokens
            self.release()

    def row(self, number: int) -> list[int]:
        """One of them."""
        return self.select(np.array([number])).tokens.tolist()  # type: ignore[no-any-return]

    def padded(self, rows: Ints) -> Ints:
        """Some of them, (rows, longest) int64, zero beyond each length."""
        padded = Padded.of(self.starts[rows], self.lengths[rows])
        return padded.filled(self.tokens[padded.places])

    def release(self) -> None:
        """Give back the pages of arrays that are mapped from files."""
        parts = self.tokens.parts if isinstance(self.tokens, JoinedTokens) else [self.tokens]
        release(*parts, self.starts, self.lengths)


class JoinedTokens:
    """Arrays of tokens that are read as one, and not copied.

    >>> JoinedTokens([np.array([5, 6]), np.array([7])])[np.array([2, 0])].tolist()
    [7, 5]

    Args:
        parts: arrays of whole numbers.

    Attributes:
        parts: the arrays.
        ends: the number of tokens of each part and those before it.
    """

    def __init__(self, parts: list[NDArray[Any]]):
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts]).tolist()
        self.dtype = np.result_type(*parts)

    def __len__(self) -> int:
        """The number of tokens of all parts."""
        return self.ends[-1]  # type: ignore[no-any-return]

    def __getitem__(self, places: Ints) -> NDArray[Any]:
        """The tokens at some places, (n,)."""
        found = np.empty(len(places), self.dtype)
        which = np.searchsorted(self.ends, places, side="right")
        for number in np.unique(which).tolist():
            here = which == number
            found[here] = self.parts[number][places[here] - self.ends[number] + len(self.parts[number])]
        return found


def _rows(part: TokenSequences, chosen: Ints | None) -> Iterator[Any]:
    """All sequences or those chosen, some at a time, as what selects them."""
    for start in range(0, len(part.lengths) if chosen is None else len(chosen), _BLOCK):
        some = slice(start, start + _BLOCK)
        yield some if chosen is None else chosen[some]


@dataclass(frozen=True, eq=False)
class PairBatch(Movable):
    """B pairs, of at most S and T tokens.

    Attributes:
        source: (B, S) int64, zero beyond each length.
        source_lengths: (B,) int64.
        inputs: (B, T) int64, what is read before each target: the symbol that begins, then the targets but the last.
        targets: (B, T) int64.
        lengths: (B,) int64, of the targets.
        places: (B,) int64, the number of each pair.
        count: targets.
    """

    source: Tensor
    source_lengths: Tensor
    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    places: Tensor
    count: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)


class PairBatches(Bucketed[PairBatch]):
    """Pairs in padded batches of near-equal lengths; see `BucketOrder` for the order.

    Args:
        source, target: N ≥ 1 sequences each.
        begin: the symbol before a target's first.
        batch_size: most pairs in a batch.
        seed, shuffle, max_tokens, even: as of `BucketOrder`; a pair is as long as the longer of its two sequences.

    Example:
        >>> one, two = np.array([1, 2, 0, 3, 0]), np.array([4, 0, 5, 6, 0])
        >>> pairs = TokenSequences.of(one, np.array([3, 2])), TokenSequences.of(two, np.array([2, 3]))
        >>> batch = PairBatches(*pairs, 0, 2, shuffle=False).batch(0, 0)
        >>> batch.source.tolist(), batch.inputs.tolist(), batch.targets.tolist()
        ([[1, 2, 0], [3, 0, 0]], [[0, 4, 0], [0, 5, 6]], [[4, 0, 0], [5, 6, 0]])
    """

    def __init__(
        self,
        source: TokenSequences,
        target: TokenSequences,
        begin: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_tokens: int | None = None,
        even: bool = False,
    ):
        self._source, self._target, self._begin = source, target, begin
        both = source.lengths, target.lengths
        longer = scratch((np.maximum(*(side[rows] for side in both)) for rows in _rows(source, None)), np.int32)
        order = {"seed": seed, "shuffle": shuffle, "max_tokens": max_tokens, "ties": target.lengths, "even": even}
        super().__init__(longer, batch_size, **order)

    def made_of(self, rows: Ints) -> PairBatch:
        """Some pairs."""
        lengths, source_lengths = (side.lengths[rows].astype(np.int64) for side in (self._target, self._source))
        targets = self._target.padded(rows)
        inputs = np.concatenate([np.full((len(rows), 1), self._begin), targets[:, :-1]], axis=1)
        inputs *= np.arange(inputs.shape[1]) < lengths[:, None]
        source = self._source.padded(rows)
        self._source.release()
        self._target.release()
        return PairBatch(
            source=torch.from_numpy(source),
            source_lengths=torch.from_numpy(source_lengths),
            inputs=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            lengths=torch.from_numpy(lengths),
            places=torch.from_numpy(rows.copy()),
            count=int(lengths.sum()),
        )
