"""Windows of tracks: positions that are read, and those that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable, RowBatches
from everstep.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TrackBatch(Movable):
    """B windows of W steps that are read and H that follow.

    Attributes:
        seen: (B, W, D) float32.
        ahead: (B, H, D) float32.
    """

    seen: Tensor
    ahead: Tensor

    @property
    def rows(self) -> int:
        """B."""
        return len(self.seen)

    @property
    def count(self) -> int:
        """B · H, the positions to predict."""
        return self.ahead.shape[0] * self.ahead.shape[1]


class TrackWindows(RowBatches[TrackBatch]):
    """Batches of windows of tracks, each window once an epoch, in an order of the seed and the epoch alone.

    Args:
        tracks: (T, D) each; those shorter than window + horizon have no window.
        window, horizon: steps W and H.
        batch_size: windows in a batch.
        stride: steps from one window of a track to the next.
        seed: of the order; None keeps that of the tracks.

    Attributes:
        starts: (N, 2), the track of each window and the step at which it begins.

    Raises:
        DataError: no track is long enough.

    Example:
        >>> track = np.arange(5.0)[:, None]
        >>> windows = TrackWindows([track], 2, 2, batch_size=8)
        >>> windows.batch(0, 0).seen[..., 0].tolist(), windows.batch(0, 0).ahead[..., 0].tolist()
        ([[0.0, 1.0], [1.0, 2.0]], [[2.0, 3.0], [3.0, 4.0]])
    """

    def __init__(
        self,
        tracks: Sequence[NDArray[Any]],
        window: int,
        horizon: int,
        batch_size: int,
        stride: int = 1,
        seed: int | None = None,
    ):
        self.batch_size, self.window, self.horizon, self._seed = batch_size, window, horizon, seed
        self._tracks = [track.astype(np.float32) for track in tracks]
        size = window + horizon
        self.starts: Ints = np.array(
            [(place, start) for place, track in enumerate(tracks) for start in range(0, len(track) - size + 1, stride)],
            np.int64,
        ).reshape(-1, 2)
        if not len(self.starts):
            longest = max(map(len, tracks), default=0)
            raise DataError(
                f"no track is long enough: expected {size:,} steps, {window} to read (model.window) and {horizon} that "
                f"follow (model.horizon); the longest has {longest:,}"
            )
        self._order: tuple[int, Ints] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.starts) // self.batch_size)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the windows of a batch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self._ordered(epoch)[part]

    def _ordered(self, epoch: int) -> Ints:
        if self._seed is None:
            return np.arange(len(self.starts))
        if self._order[0] != epoch:
            random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order = (epoch, random.permutation(len(self.starts)))
        return self._order[1]

    def made_of(self, windows: Ints) -> TrackBatch:
        """The batch of the windows with these numbers."""
        size = self.window + self.horizon
        found = np.stack([self._tracks[track][start : start + size] for track, start in self.starts[windows]])
        seen, ahead = np.split(found, [self.window], axis=1)
        return TrackBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (seen, ahead)))
