"""Batches of whole token sequences, each with one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable
from everstep.data.bucket_order import Bucketed, Padded

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelledBatch(Movable):
    """B sequences of at most T tokens.

    Attributes:
        tokens: (B, T) int64, 0 beyond each length.
        lengths: (B,) int64.
        labels: (B,) int64 class ids; or (B, …), the target of each sequence.
        places: (B,) int64, the index of each sequence in the data set.
    """

    tokens: Tensor
    lengths: Tensor
    labels: Tensor
    places: Tensor

    @property
    def rows(self) -> int:
        """B."""
        return len(self.labels)

    @property
    def count(self) -> int:
        """B, one target per sequence."""
        return len(self.labels)


class LabelledBatches(Bucketed[LabelledBatch]):
    """Sequences with classes in padded batches of near-equal length; for the order see `BucketOrder`.

    Args:
        sequences: N ≥ 1 arrays of token ids; an empty one is a row of length 0.
        labels: (N,) class ids, or (N, …) targets.
        batch_size, seed, shuffle, max_tokens: see `BucketOrder`.

    Example:
        >>> batches = LabelledBatches([np.array([5, 6]), np.array([7])], np.array([1, 0]), 2, shuffle=False)
        >>> batch = batches.batch(0, 0)
        >>> batch.tokens.tolist(), batch.lengths.tolist(), batch.labels.tolist()
        ([[7, 0], [5, 6]], [1, 2], [0, 1])
    """

    def __init__(
        self,
        sequences: Sequence[Ints],
        labels: NDArray[Any],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_tokens: int | None = None,
    ):
        self._lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.concatenate([*sequences, np.zeros(1, np.int64)]).astype(np.int32)
        self._labels = np.asarray(labels)
        super().__init__(self._lengths, batch_size, seed=seed, shuffle=shuffle, max_tokens=max_tokens)

    def made_of(self, rows: Ints) -> LabelledBatch:
        """The batch of the sequences with indices `rows`."""
        lengths = self._lengths[rows]
        padded = Padded.of(self._starts[rows], lengths)
        tokens = padded.filled(self._tokens[padded.places])
        return LabelledBatch(*map(torch.from_numpy, (tokens, lengths, self._labels[rows], rows.copy())))
