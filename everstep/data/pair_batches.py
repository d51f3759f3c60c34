"""Batches of pairs of token sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable
from everstep.data.bucket_order import Bucketed, Ints, Padded


class TokenSequences(NamedTuple):
    """N sequences of tokens, one after another in one array.

    Attributes:
        tokens: all of them, of any integer type.
        starts, lengths: (N,) int64.
    """

    tokens: NDArray[Any]
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, tokens: NDArray[Any], lengths: Ints) -> TokenSequences:
        """TokenSequences of these lengths."""
        return cls(tokens, np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def joined(cls, parts: list[TokenSequences]) -> TokenSequences:
        """The sequences of all parts, one after another; there is at least one part."""
        return cls.of(np.concatenate([p.tokens for p in parts]), np.concatenate([p.lengths for p in parts]))

    def select(self, rows: Ints) -> TokenSequences:
        """Some of them."""
        lengths = self.lengths[rows]
        return TokenSequences.of(self.tokens[Padded.of(self.starts[rows], lengths).places], lengths)

    def row(self, number: int) -> list[int]:
        """One of them."""
        start = self.starts[number]
        return self.tokens[start : start + self.lengths[number]].tolist()  # type: ignore[no-any-return]

    def padded(self, rows: Ints) -> Ints:
        """Some of them, (rows, longest) int64, zero beyond each length."""
        padded = Padded.of(self.starts[rows], self.lengths[rows])
        return padded.filled(self.tokens[padded.places])


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
        longer = np.maximum(source.lengths, target.lengths)
        order = {"seed": seed, "shuffle": shuffle, "max_tokens": max_tokens, "ties": target.lengths, "even": even}
        super().__init__(longer, batch_size, **order)

    def made_of(self, rows: Ints) -> PairBatch:
        """Some pairs."""
        lengths = self._target.lengths[rows]
        targets = self._target.padded(rows)
        inputs = np.concatenate([np.full((len(rows), 1), self._begin), targets[:, :-1]], axis=1)
        inputs *= np.arange(inputs.shape[1]) < lengths[:, None]
        return PairBatch(
            source=torch.from_numpy(self._source.padded(rows)),
            source_lengths=torch.from_numpy(self._source.lengths[rows]),
            inputs=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            lengths=torch.from_numpy(lengths),
            places=torch.from_numpy(rows.copy()),
            count=int(lengths.sum()),
        )
