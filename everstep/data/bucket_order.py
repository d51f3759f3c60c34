"""Bucketing: batches of sequences of near-equal length, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.batches import B, RowBatches
from everstep.data.length_groups import LengthGroups, numbers
from everstep.errors import ConfigError
from everstep.storage.scratch import release

Ints = NDArray[np.int64]


class BucketOrder:
    """Indices of sequences, in batches of similar length, each once per epoch.

    In each epoch the sequences are shuffled and divided into pools of `pool * batch_size`; each pool is sorted by
    length and cut into batches, and the batches are shuffled. The order is in temporary files, which are mapped: memory
    does not grow with N.

    Args:
        lengths: (N,) whole numbers, the lengths of the sequences, N ≥ 1.
        batch_size: most sequences in a batch.
        seed: seed of the order.
        shuffle: if false, the given order, in pools sorted by length, the same every epoch.
        pool: batches in a pool; larger pools need less padding.
        max_tokens: most sequences × steps in a batch, padding included. All sequences then form one pool, so that every
            epoch has the same number of batches; a longer sequence is a batch by itself.
        ties: (N,) second lengths, such as those of translations: sequences of equal length are sorted by them.
        even: batches have equal numbers of steps, as nearly as whole sequences allow: as many as `batch_size` sequences
            have on average; a longer sequence is a batch by itself. An optimizer step divides a loss by the targets of
            its batch, so that with equal numbers of sequences, which are of similar length, a target of a short
            sequence would have a larger weight. All sequences then form one pool, and `max_tokens` has no effect.

    Attributes:
        batch_size: most sequences in a batch.

    Raises:
        ConfigError: a size is below 1, or the seed is negative.
    """

    def __init__(
        self,
        lengths: NDArray[Any],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        pool: int = 100,
        max_tokens: int | None = None,
        ties: NDArray[Any] | None = None,
        even: bool = False,
    ):
        sizes = {"batch_size": batch_size, "pool": pool, "max_tokens": 1 if max_tokens is None else max_tokens}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"train.{name}={value}: expected 1 or more")
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected 0 or more")
        self._groups, self._seed, self._shuffle = LengthGroups.of(lengths, ties), seed, shuffle
        number = len(lengths)
        batches = -(-number // batch_size)
        self.batch_size = max(1, -(-int(self._groups.steps[-1]) // batches)) if even else batch_size
        self._pool = number if max_tokens or even else pool * batch_size
        if even:
            self._bounds = self._cut_evenly(batches)
        else:
            self._bounds = self._cut(max_tokens) if max_tokens else np.append(np.arange(0, number, batch_size), number)
        self._arranged: tuple[int, NDArray[Any], Ints] = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._bounds) - 1

    def rows(self, epoch: int, index: int) -> Ints:
        """The indices of the sequences in batch `index` of `epoch`.

        Raises:
            IndexError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        sequences, batches = self._order(epoch)
        place = batches[index]
        rows = np.array(sequences[self._bounds[place] : self._bounds[place + 1]], np.int64)
        release(sequences)
        return rows

    def _cut(self, max_tokens: int) -> Ints:
        """Bounds of the batches over all sequences sorted by length, each as large as `max_tokens` allows."""
        number, rows = self._groups.number, np.arange(1, self.batch_size + 1)
        bounds = [0]
        while bounds[-1] < number:
            ahead = self._groups.lengths_at(np.arange(bounds[-1], min(bounds[-1] + self.batch_size, number)))
            fit = np.searchsorted(ahead * rows[: len(ahead)], max_tokens, side="right")
            bounds.append(bounds[-1] + max(int(fit), 1))
        return np.array(bounds)

    def _cut_evenly(self, batches: int) -> Ints:
        """Bounds of about so many batches over all sequences sorted by length, each with as many steps."""
        lengths, before, steps = self._groups.lengths, self._groups.before, self._groups.steps
        shares = np.arange(1, batches) / batches * steps[-1]
        alone = np.searchsorted(lengths, steps[-1] / batches, side="right")  # else shorter ones would be padded to it
        group = np.searchsorted(steps, shares)  # the one within which a share is complete
        size, done = np.maximum(lengths[group], 1), np.append(0, steps)[group]
        many = np.ceil((shares - done) / size).astype(np.int64)
        many += done + many * size < shares  # rounding
        many = np.maximum(many - (done + (many - 1) * size >= shares), 1)
        number = self._groups.number
        return np.unique(np.concatenate([[0, np.append(before, number)[alone]], before[group] + many, [number]]))

    def _order(self, epoch: int) -> tuple[NDArray[Any], Ints]:
        """The sequences in the epoch's order, and the order of the batches cut from them."""
        known, sequences, batches = self._arranged
        if known != epoch:
            sequences, batches = numbers(self._groups.number), np.arange(len(self))
            if self._shuffle:
                random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
                random.shuffle(np.asarray(sequences))
                random.shuffle(batches)
            release(sequences)
            sequences = self._sorted(sequences)
            self._arranged = (epoch, sequences, batches)
        return sequences, batches

    def _sorted(self, sequences: NDArray[Any]) -> NDArray[Any]:
        """The sequences with those of each pool sorted by length."""
        if self._pool >= self._groups.number:
            return self._groups.sorted(sequences)
        for start in range(0, len(sequences), self._pool):
            pool = sequences[start : start + self._pool]
            sequences[start : start + self._pool] = pool[np.argsort(self._groups.which[pool], kind="stable")]
            release(self._groups.which, sequences)
        return sequences


class Bucketed(RowBatches[B]):
    """Batches in the order of a `BucketOrder`; a subclass makes a batch from `rows` in `made_of`.

    Args:
        lengths: (N,) lengths of the sequences, N ≥ 1.
        batch_size, seed, shuffle, pool, max_tokens, ties, even: see `BucketOrder`.
    """

    def __init__(self, lengths: NDArray[Any], batch_size: int, **order: Any):
        self._order = BucketOrder(lengths, batch_size, **order)
        self.batch_size = self._order.batch_size

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def drawn(self, epoch: int, index: int) -> Ints:
        """The numbers of the sequences of a batch."""
        return self._order.rows(epoch, index)


class Padded(NamedTuple):
    """Ragged rows of a flat array, as a padded table.

    >>> rows = Padded.of(np.array([0, 3]), np.array([2, 1]))
    >>> rows.filled(np.array([5, 6, 0, 7])[rows.places]).tolist()
    [[5, 6], [7, 0]]

    Attributes:
        inside: (rows, longest) bool, False in the padding.
        places: (n,) indices of the valid entries in the flat array, row by row.
    """

    inside: NDArray[np.bool_]
    places: Ints

    @classmethod
    def of(cls, starts: Ints, lengths: Ints) -> Padded:
        """Rows with these starts and lengths in the flat array; at least one step wide."""
        steps = np.arange(max(1, int(lengths.max(initial=0))))
        inside = steps < lengths[:, None]
        return cls(inside, (starts[:, None] + steps)[inside])

    def filled(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` (n, …), the entries at `places`, as (rows, longest, …), zero in the padding; integers as int64."""
        kind = np.int64 if values.dtype.kind in "iu" else values.dtype
        found: NDArray[Any] = np.zeros((*self.inside.shape, *values.shape[1:]), kind)
        found[self.inside] = values
        return found
