"""Batches of drawings: the moves of a pen, and what it does behind each."""

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
Moves = NDArray[np.float32]
"""A drawing: (T, 3), Δx, Δy, and whether the pen is lifted behind the point."""


def with_pens(moves: Moves) -> Moves:
    """A drawing (T, 3) as (T + 1, 5): Δx, Δy, and one of draw, lift, end. The last row is the end.

    >>> with_pens(np.array([[2, 3, 0], [1, 1, 1]], np.float32)).astype(int).tolist()
    [[2, 3, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    """
    found = np.zeros((len(moves) + 1, 5), np.float32)
    found[:-1, :2] = moves[:, :2]
    found[np.arange(len(moves)), 2 + (moves[:, 2] > 0)] = 1
    found[-1, 4] = 1
    return found


def thinned(moves: Moves, dropped: float, random: np.random.Generator) -> Moves:
    """A drawing without some of its points, each with probability `dropped`: those within a stroke, no two in a row."""
    inner = np.zeros(len(moves), bool)
    inner[1:] = (moves[1:, 2] == 0) & (moves[:-1, 2] == 0)
    drop = inner & (random.random(len(moves)) < dropped)
    drop[1:] &= ~drop[:-1]
    places = moves[:, :2].cumsum(0, np.float64)[~drop]
    steps = np.diff(places, axis=0, prepend=0)
    return np.column_stack([steps, moves[~drop, 2]]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class MoveBatch(Movable):
    """B drawings of at most T points.

    Attributes:
        moves: (B, T + 1, 5) float32: Δx, Δy, and one of draw, lift, end; 0 beyond each length.
        lengths: (B,) int64, points and the end.
        count: the number of points.
    """

    moves: Tensor
    lengths: Tensor
    count: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)


class MoveBatches(Bucketed[MoveBatch]):
    """Drawings in padded batches of near-equal length; for the order see `BucketOrder`.

    Args:
        drawings: N ≥ 1 drawings (T, 3).
        batch_size: most drawings in a batch.
        seed: seed of the order and of changes; None: the given order, the same every epoch.
        stretched: s: Δx and Δy of a drawing are multiplied by one factor each, uniform in 1 ± s, anew in every epoch.
        dropped: probability of a point within a stroke to be left out, anew in every epoch.

    Raises:
        ConfigError: changes without a seed.

    Example:
        >>> batch = MoveBatches([np.zeros((1, 3), np.float32), np.ones((2, 3), np.float32)], 2).batch(0, 0)
        >>> batch.moves.shape, batch.lengths.tolist(), batch.count
        (torch.Size([2, 3, 5]), [2, 3], 3)
    """

    def __init__(
        self,
        drawings: Sequence[Moves],
        batch_size: int,
        *,
        seed: int | None = None,
        stretched: float = 0.0,
        dropped: float = 0.0,
    ):
        if seed is None and (stretched or dropped):
            raise ConfigError("stretched, dropped: expected a seed beside them")
        self._drawings, self._seed = list(drawings), seed or 0
        self._stretched, self._dropped = stretched, dropped
        lengths = np.array([len(one) + 1 for one in drawings])
        super().__init__(lengths, batch_size, seed=self._seed, shuffle=seed is not None, even=seed is not None)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the drawings of a batch, each together with the epoch, by which its changes are drawn."""
        return super().drawn(epoch, index) + epoch * len(self._drawings)

    def made_of(self, rows: Ints) -> MoveBatch:
        """The batch of these drawings."""
        found = [with_pens(self._changed(*divmod(row, len(self._drawings)))) for row in rows.tolist()]
        lengths = np.array([len(one) for one in found])
        padded = Padded.of(np.cumsum(lengths) - lengths, lengths)
        return MoveBatch(
            moves=torch.from_numpy(padded.filled(np.concatenate(found))),
            lengths=torch.from_numpy(lengths),
            count=int(lengths.sum()) - len(lengths),
        )

    def _changed(self, epoch: int, number: int) -> Moves:
        moves = self._drawings[number]
        if not self._stretched and not self._dropped:
            return moves
        random = np.random.default_rng([self._seed, epoch, number])
        moves = thinned(moves, self._dropped, random) if self._dropped else moves
        factors = random.uniform(1 - self._stretched, 1 + self._stretched, 2)
        return moves * np.append(factors, 1).astype(np.float32)
