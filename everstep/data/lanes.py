"""Long streams as parallel lanes, for truncated backpropagation through time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.batches import Batches, Share, TokenBatch
from everstep.data.text.corpus import Corpus
from everstep.errors import ConfigError, DataError, counted

Ints = NDArray[np.int64]
_HALVED, _SPREAD, _SHORTEST = 0.05, 5.0, 5.0
"""Of random lengths: the share of half ones, the standard deviation, and the least, in steps."""


class _Order(NamedTuple):
    """The documents of an epoch, concatenated. `ends` (D,): end positions; `shifts` (D,): offsets to their tokens."""

    epoch: int
    ends: Ints
    shifts: Ints


class Lanes(Batches[TokenBatch]):
    """A corpus cut into `batch_size` lanes of near-equal length; batch i holds targets [i k1, (i + 1) k1) of each lane.

    Every target is counted once per epoch. With `begin_id`, it is the first input; without it, the first token is not a
    target. With `shuffle`, documents are reordered in each epoch; where one starts, the input is `begin_id` and
    `resets` is True. `resets` is also True at the first step of each lane. The last batch may be shorter, with
    `lengths` if the lanes differ.

    Args:
        corpus: the corpus; its tokens stay on disk.
        batch_size: number of lanes B.
        k1: steps from one update to the next.
        k2: steps that a gradient reaches back; if k2 > k1, a batch starts up to k2 − k1 steps early
            (`TokenBatch.context`).
        seed: seed of the order of documents, which depends on seed and epoch alone.
        begin_id: the symbol before the first token (`Tokenizer.begin_id`).
        shuffle: whether to reorder documents in each epoch.
        random_k1: draw the length of each batch from N(k1, 25), at least 5, or for one in 20 from N(k1 / 2, 25)
            (Merity 2018), of seed and epoch; then scale them, so that each epoch has as many batches as without.

    Raises:
        DataError: there are fewer targets than lanes, or documents without `begin_id`.
        ConfigError: a size is below 1, or the seed is negative.

    Example:
        >>> lanes = Lanes(Corpus(np.arange(9), np.array([0])), batch_size=2, k1=3)
        >>> len(lanes), lanes.batch(epoch=0, index=1).targets.tolist()
        (2, [[4], [8]])
    """

    carries_state = True

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        k1: int,
        k2: int | None = None,
        *,
        seed: int = 0,
        begin_id: int | None = None,
        shuffle: bool = True,
        random_k1: bool = False,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("k1", k1, 1),
            ("k2", k2 or k1, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ConfigError(f"train.{name}={value}: expected {least} or more")
        if begin_id is None and len(corpus.starts) > 1:
            raise DataError(
                f"{len(corpus.starts):,} documents, but no symbol that stands before the first of each: "
                "the vocabulary has neither <eos> nor newline; set data.eos=true"
            )
        self.batch_size = batch_size
        self.k1 = k1
        self._overlap = max((k2 or k1) - k1, 0)
        self._corpus, self._seed, self._begin_id, self._shuffle = corpus, seed, begin_id, shuffle
        self._first = 0 if begin_id is not None else 1
        self.targets = max(len(corpus) - self._first, 0)
        if self.targets < batch_size:
            lower = f"set train.batch_size={self.targets}{' or less' if self.targets > 1 else ''}, or "
            remedy = f"{lower if self.targets else ''}give more text"
            raise DataError(
                f"the text has {counted(len(corpus), 'token')}, {self.targets:,} to predict; "
                f"train.batch_size={batch_size} needs at least one for each of {counted(batch_size, 'lane')}: {remedy}"
            )
        share, more = divmod(self.targets, batch_size)
        lanes = np.arange(batch_size)
        self._lane_starts = lanes * share + np.minimum(lanes, more)
        self._lane_lengths = share + (lanes < more)
        self._order = self._arranged(0)
        self._random, self._cuts = random_k1, (-1, np.arange(len(self) + 1) * k1)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-int(self._lane_lengths[0]) // self.k1)

    def batch(self, epoch: int, index: int) -> TokenBatch:
        """Batch `index` of `epoch`. The order of an epoch's documents is computed once.

        Raises:
            IndexError: there is no such batch.
        """
        return self._of_lanes(epoch, index, Share())

    def part(self, epoch: int, index: int, share: Share) -> TokenBatch | None:
        """The lanes of a batch that belong to `share`; None if there are none."""
        return self._of_lanes(epoch, index, share) if share.rank < self.batch_size else None

    def _of_lanes(self, epoch: int, index: int, share: Share) -> TokenBatch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        longest = int(self._lane_lengths[0])
        cuts = self._cuts_of(epoch)
        start = self._window(cuts, index)
        stop = min(int(cuts[index + 1]), longest)
        lane_starts, lane_lengths = share.part(self._lane_starts), share.part(self._lane_lengths)
        valid = np.clip(lane_lengths - start, 0, stop - start)
        inside = np.arange(stop - start) < valid[:, None]
        targets, inputs, heads = self._gather(epoch, lane_starts[:, None] + np.arange(start, stop), inside)
        heads[:, 0] |= start == 0
        ragged = bool((valid < stop - start).any())
        return TokenBatch(
            torch.from_numpy(inputs),
            torch.from_numpy(targets),
            torch.from_numpy(valid) if ragged else None,
            torch.from_numpy(heads) if heads.any() else None,
            int(cuts[index]) - start,
            min(self._window(cuts, index + 1), stop) - start,
        )

    def _window(self, cuts: Ints, index: int) -> int:
        """The step within a lane at which batch `index` starts, its context included."""
        return int(cuts[index]) - min(int(cuts[index]), self._overlap)

    def _cuts_of(self, epoch: int) -> Ints:
        """The steps within a lane between which the batches of an epoch lie, (batches + 1,)."""
        known, cuts = self._cuts
        if self._random and known != epoch:
            random = np.random.Generator(np.random.PCG64([self._seed, epoch, 1]))
            middle = np.where(random.random(len(self)) < _HALVED, self.k1 / 2, self.k1)
            lengths = np.maximum(random.normal(middle, _SPREAD), _SHORTEST)
            longest, at = int(self._lane_lengths[0]), np.arange(1, len(self) + 1)
            ends = np.rint(np.cumsum(lengths) * (longest / lengths.sum())).astype(np.int64)
            ends = np.maximum.accumulate(np.maximum(ends - at, 0)) + at  # no batch is empty
            cuts = np.concatenate([[0], np.minimum(ends, longest - len(self) + at)])
            self._cuts = epoch, cuts
        return cuts

    def _gather(self, epoch: int, places: Ints, inside: NDArray[np.bool_]) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Targets, inputs and document starts at positions (B, T) of the epoch; 0 and False outside the lanes."""
        order = self._order_of(epoch)
        places = np.minimum(places, self.targets - 1)
        document = np.searchsorted(order.ends, places, side="right")
        source = places + order.shifts[document]
        heads = places == np.where(document > 0, order.ends[document - 1], 0)
        targets = np.where(inside, self._corpus.take(source), 0)
        inputs = self._corpus.take(np.maximum(source - 1, 0))
        if self._begin_id is not None:
            inputs[heads] = self._begin_id
        if len(order.ends) == 1:  # one stream starts at the first step of the first lane, which is marked anyway
            heads = np.zeros_like(heads)
        return targets, np.where(inside, inputs, 0), heads & inside

    def _order_of(self, epoch: int) -> _Order:
        order = self._order
        if order.epoch != epoch:
            order = self._order = self._arranged(epoch)
        return order

    def _arranged(self, epoch: int) -> _Order:
        starts = self._corpus.starts
        if len(starts) < 2:
            return _Order(epoch, np.array([self.targets]), np.array([self._first]))
        order = np.arange(len(starts))
        if self._shuffle:
            order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(len(starts))
        lengths = np.diff(starts, append=len(self._corpus))[order]
        ends = np.cumsum(lengths)
        return _Order(epoch, ends, starts[order] - (ends - lengths))
