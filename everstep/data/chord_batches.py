"""Batches of pieces of music: which keys sound at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable
from everstep.data.bucket_order import Bucketed, Padded
from everstep.errors import ConfigError

Ints = NDArray[np.int64]
Roll = NDArray[np.bool_]
"""A piece: (steps, keys), whether a key sounds."""


@dataclass(frozen=True, eq=False)
class ChordBatch(Movable):
    """B pieces of at most T steps.

    Attributes:
        chords: (B, T, K) float32 of 0 and 1: whether a key sounds, 0 beyond each length.
        lengths: (B,) int64.
        places: (B,) int64, the index of each piece in the data set.
        count: the number of steps.
    """

    chords: Tensor
    lengths: Tensor
    places: Tensor
    count: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)


class ChordBatches(Bucketed[ChordBatch]):
    """Pieces in padded batches of near-equal length; for the order see `BucketOrder`.

    Args:
        rolls: N ≥ 1 pieces (steps, K).
        batch_size: most pieces in a batch.
        seed: seed of the order and of transpositions; None: the given order, the same every epoch.
        transpose: most semitones by which a piece is moved up or down, anew in every epoch, as far as its keys are
            among the K.

    Example:
        >>> batch = ChordBatches([np.eye(3, dtype=bool), np.ones((1, 3), bool)], 2).batch(0, 0)
        >>> batch.chords.shape, batch.lengths.tolist(), batch.count
        (torch.Size([2, 3, 3]), [1, 3], 4)
    """

    def __init__(self, rolls: Sequence[Roll], batch_size: int, *, seed: int | None = None, transpose: int = 0):
        if transpose and seed is None:
            raise ConfigError("transpose: expected a seed beside it")
        lengths = np.array([len(roll) for roll in rolls])
        self._starts, self._lengths, self._flat = np.cumsum(lengths) - lengths, lengths, np.concatenate(rolls)
        edges = np.array([_lowest_and_highest(roll) for roll in rolls])
        self._down = np.maximum(-transpose, -edges[:, 0])
        self._up = np.minimum(transpose, self._flat.shape[1] - 1 - edges[:, 1])
        self._seed, self._most = seed or 0, transpose
        super().__init__(lengths, batch_size, seed=self._seed, shuffle=seed is not None, even=seed is not None)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the pieces of a batch, each together with by how much it is moved."""
        rows = super().drawn(epoch, index)
        random = np.random.default_rng([self._seed, epoch, index])
        found: Ints = rows * (2 * self._most + 1) + self._most + random.integers(self._down[rows], self._up[rows] + 1)
        return found

    def made_of(self, rows: Ints) -> ChordBatch:
        """The batch of these pieces."""
        places, moved = np.divmod(rows, 2 * self._most + 1)
        lengths = self._lengths[places]
        padded = Padded.of(self._starts[places], lengths)
        by = np.repeat(moved - self._most, lengths)[:, None]
        columns = np.arange(self._flat.shape[1]) - by  # nothing sounds in those that go around
        chords = self._flat[padded.places[:, None], columns % self._flat.shape[1]]
        return ChordBatch(
            chords=torch.from_numpy(padded.filled(chords.astype(np.float32))),
            lengths=torch.from_numpy(lengths),
            places=torch.from_numpy(places),
            count=int(lengths.sum()),
        )


def _lowest_and_highest(roll: Roll) -> tuple[int, int]:
    """The lowest and the highest key that sounds, 0 and 0 if none does."""
    keys = np.flatnonzero(roll.any(0))
    return (int(keys[0]), int(keys[-1])) if len(keys) else (0, 0)
