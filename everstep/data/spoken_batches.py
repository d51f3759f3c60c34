"""Batches of recordings as frames, each with the labels that are said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Movable
from everstep.data.bucket_order import Bucketed, Padded

Frames = NDArray[np.float32]
Ints = NDArray[np.int64]
NO_LABEL = -100
"""What stands after the last label of a row."""


@dataclass(frozen=True, eq=False)
class SpokenBatch(Movable):
    """B recordings of at most T steps, with at most U labels.

    Attributes:
        inputs: (B, T, D) float32, 0 beyond each length.
        lengths: (B,) int64.
        labels: (B, U) int64; −100 after the last label.
        places: (B,) int64, the index of each recording in the data set.
        count: the number of labels.
    """

    inputs: Tensor
    lengths: Tensor
    labels: Tensor
    places: Tensor
    count: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)


class Changes(NamedTuple):
    """How training changes each recording, anew in each epoch.

    Attributes:
        masks: masks of neighbouring bands, and as many of neighbouring frames (SpecAugment, Park 2019).
        bands: most bands of a mask.
        frames: most frames of a mask; at most a fifth of the recording.
        warp: w: time and the axis of bands are each stretched by a factor drawn from 1 − w … 1 + w.
    """

    masks: int = 0
    bands: int = 8
    frames: int = 20
    warp: float = 0.0


NO_CHANGES = Changes()


def stacked(frames: Frames, many: int) -> Frames:
    """Frames (T, D) with `many` neighbours side by side, (⌈T / many⌉, many · D); zeros complete the last ones.

    >>> stacked(np.array([[1.0], [2.0], [3.0]], np.float32), 2).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    steps = -(-len(frames) // many)
    padded = np.zeros((steps * many, frames.shape[1]), np.float32)
    padded[: len(frames)] = frames
    return padded.reshape(steps, -1)


def warped(frames: Frames, size: int, stretch: float) -> Frames:
    """Frames (T, D) as (size, D), by the line between neighbours; band b is that of b / stretch.

    >>> warped(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), 3, 1.0).tolist()
    [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    """
    found = frames
    for axis, places in ((0, np.linspace(0, len(frames) - 1, size)), (1, np.arange(frames.shape[1]) / stretch)):
        places = places.clip(0, frames.shape[axis] - 1)
        low = places.astype(np.int64)
        share = (places - low).astype(np.float32).reshape(-1, 1) if axis == 0 else (places - low).astype(np.float32)
        high = np.minimum(low + 1, frames.shape[axis] - 1)
        found = found.take(low, axis) * (1 - share) + found.take(high, axis) * share
    return found


def masked(frames: Frames, changes: Changes, random: np.random.Generator) -> Frames:
    """A copy of scaled frames (T, D) in which masks are 0, the mean of training."""
    found = frames.copy()
    for _ in range(changes.masks):
        for axis, most in ((1, min(changes.bands, frames.shape[1] // 2)), (0, min(changes.frames, len(frames) // 5))):
            width = int(random.integers(0, most + 1))
            start = int(random.integers(0, frames.shape[axis] - width + 1))
            found[(slice(None),) * axis + (slice(start, start + width),)] = 0
    return found


class SpokenBatches(Bucketed[SpokenBatch]):
    """Recordings in padded batches of near-equal length; for the order see `BucketOrder`.

    Args:
        recordings: N ≥ 1 scaled frames (T, D).
        labels: the labels of each.
        batch_size: most recordings in a batch.
        stack: frames that are one step.
        seed: seed of the order and of changes; None: the given order, the same every epoch, without changes.
        changes: how training changes recordings.
        steps: the fewest steps that each recording may have after a change; needed with `changes.warp`.
        max_steps: most rows × steps in a batch, without a seed.

    Example:
        >>> batch = SpokenBatches([np.ones((3, 2)), np.ones((1, 2))], [[4, 1], []], 2, stack=2).batch(0, 0)
        >>> batch.inputs.shape, batch.lengths.tolist(), batch.labels.tolist(), batch.count
        (torch.Size([2, 2, 4]), [1, 2], [[-100, -100], [4, 1]], 2)
    """

    def __init__(
        self,
        recordings: Sequence[NDArray[Any]],
        labels: Sequence[Sequence[int]],
        batch_size: int,
        *,
        stack: int = 1,
        seed: int | None = None,
        changes: Changes = NO_CHANGES,
        steps: Sequence[int] = (),
        max_steps: int | None = None,
    ):
        self._recordings, self._labels, self._stack = recordings, labels, stack
        self._seed, self._changes, self._least = seed, changes, steps
        lengths = np.array([-(-len(frames) // stack) for frames in recordings], np.int64)
        order: dict[str, Any] = {"shuffle": False, "max_tokens": max_steps}
        if seed is not None:
            order = {"seed": seed, "even": True}
        super().__init__(lengths, batch_size, **order)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the recordings of a batch, each together with the epoch, which decides its changes."""
        found: Ints = super().drawn(epoch, index) + (epoch * len(self._recordings) if self._seed is not None else 0)
        return found

    def made_of(self, rows: Ints) -> SpokenBatch:
        """The batch of these recordings."""
        epochs, places = np.divmod(rows, len(self._recordings))
        found = [stacked(self._seen(epoch, place), self._stack) for epoch, place in zip(epochs, places, strict=True)]
        lengths = np.array([len(one) for one in found])
        padded = Padded.of(np.cumsum(lengths) - lengths, lengths)
        spoken = [self._labels[place] for place in places]
        labels = np.full((len(rows), max(1, *map(len, spoken))), NO_LABEL)
        for row, one in zip(labels, spoken, strict=True):
            row[: len(one)] = one
        return SpokenBatch(
            inputs=torch.from_numpy(padded.filled(np.concatenate(found))),
            lengths=torch.from_numpy(lengths),
            labels=torch.from_numpy(labels),
            places=torch.from_numpy(places),
            count=sum(map(len, spoken)),
        )

    def _seen(self, epoch: int, place: int) -> Frames:
        frames, changes = self._recordings[place], self._changes
        if self._seed is None or changes == NO_CHANGES:
            return frames
        random = np.random.default_rng([self._seed, epoch, place])
        if changes.warp:
            time, stretch = random.uniform(1 - changes.warp, 1 + changes.warp, 2)
            frames = warped(frames, max(round(len(frames) * time), self._least[place] * self._stack, 1), stretch)
        return masked(frames, changes, random)
