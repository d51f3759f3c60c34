"""Batches of whole sequences of tokens or numbers, each with one class."""

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
    """B sequences of at most T steps.

    Attributes:
        inputs: (B, T) int64 tokens; or (B, T, …) float32 numbers, NaN where they are missing; 0 beyond each length.
        lengths: (B,) int64.
        labels: (B,) int64 class ids; or (B, …), the target of each sequence.
        places: (B,) int64, the index of each sequence in the data set.
    """

    inputs: Tensor
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
        sequences: N ≥ 1 arrays of token ids (T,), or of numbers (T, …); an empty one is a row of length 0.
        labels: (N,) class ids, or (N, …) targets.
        batch_size, seed, shuffle, max_tokens: see `BucketOrder`.

    Example:
        >>> batches = LabelledBatches([np.array([5, 6]), np.array([7])], np.array([1, 0]), 2, shuffle=False)
        >>> batch = batches.batch(0, 0)
        >>> batch.inputs.tolist(), batch.lengths.tolist(), batch.labels.tolist()
        ([[7, 0], [5, 6]], [1, 2], [0, 1])
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[Any]],
        labels: NDArray[Any],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_tokens: int | None = None,
    ):
        self._lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        kind = np.int32 if sequences[0].dtype.kind in "iu" else np.float32
        self._steps = np.concatenate([*sequences, np.zeros((1, *sequences[0].shape[1:]), kind)], dtype=kind)
        self._labels = np.asarray(labels)
        super().__init__(self._lengths, batch_size, seed=seed, shuffle=shuffle, max_tokens=max_tokens)

    def made_of(self, rows: Ints) -> LabelledBatch:
        """The batch of the sequences with indices `rows`."""
        lengths = self._lengths[rows]
        padded = Padded.of(self._starts[rows], lengths)
        inputs = padded.filled(self._steps[padded.places])
        return LabelledBatch(*map(torch.from_numpy, (inputs, lengths, self._labels[rows], rows.copy())))
