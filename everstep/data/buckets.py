"""Whole lines in batches of near-equal length, for sentences that do not go on from one to the next."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.batches import Batch, Batches
from everstep.data.corpus import Corpus
from everstep.errors import ConfigError, DataError


class Buckets(Batches):
    """The sequences of a corpus, each once an epoch, in padded batches of sequences of similar length.

    Each epoch the lines are shuffled, taken in pools of `pool * batch_size`, sorted by length within each, cut into
    batches, and the batches shuffled. A line's inputs are `begin_id` and its tokens but the last; its targets are its
    tokens. Padding is 0 and lies beyond `lengths`. Lines are never cut, however long.

    Args:
        corpus: made with `sequence="lines"` (or documents: each is then one row).
        batch_size: most rows in a batch.
        seed: of the order, which depends on seed and epoch alone.
        begin_id: the symbol before the first (`Tokenizer.begin_id`).
        shuffle: False: file order within pools sorted by length, the same every epoch.
        pool: batches in a pool; the larger, the less padding.
        max_tokens: most rows times steps in a batch, padding included. The whole corpus is then one pool, so that every
            epoch has as many batches; a line longer than that is a batch by itself.

    Raises:
        DataError: no `begin_id`, or no tokens.
        ConfigError: a size below 1, or a negative seed.

    Example:
        >>> corpus = Corpus(np.array([5, 0, 6, 7, 0]), np.array([0, 2]))
        >>> batch = Buckets(corpus, 2, begin_id=0, shuffle=False).batch(0, 0)
        >>> batch.inputs.tolist(), batch.targets.tolist(), batch.lengths.tolist()
        ([[0, 5, 0], [0, 6, 7]], [[5, 0, 0], [6, 7, 0]], [2, 3])
    """

    carries_state = False

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        *,
        seed: int = 0,
        begin_id: int | None,
        shuffle: bool = True,
        pool: int = 100,
        max_tokens: int | None = None,
    ):
        sizes = {"batch_size": batch_size, "pool": pool, "max_tokens": 1 if max_tokens is None else max_tokens}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"train.{name}={value}: expected 1 or more")
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected 0 or more")
        if begin_id is None:
            raise DataError("the vocabulary has no symbol that stands before a line's first; set data.eos=true")
        if not len(corpus):
            raise DataError("the corpus has no tokens: give a text that is not blank")
        self.batch_size = batch_size
        self._corpus, self._seed, self._begin_id, self._shuffle = corpus, seed, begin_id, shuffle
        self._lengths = np.diff(corpus.starts, append=len(corpus))
        lines = len(self._lengths)
        self._pool = lines if max_tokens else pool * batch_size
        self._bounds = self._cut(max_tokens) if max_tokens else np.append(np.arange(0, lines, batch_size), lines)
        self._arranged = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._bounds) - 1

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` of `epoch`; takes time for its own size alone, and for one order of lines per epoch.

        Raises:
            IndexError: no such batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        lines, batches = self._order(epoch)
        place = batches[index]
        rows = lines[self._bounds[place] : self._bounds[place + 1]]
        lengths = self._lengths[rows]
        steps = np.arange(lengths.max())
        inside = steps < lengths[:, None]
        source = np.where(inside, np.asarray(self._corpus.starts[rows])[:, None] + steps, 0)
        targets = np.where(inside, self._corpus.take(source), 0)
        inputs = np.concatenate([np.full((len(rows), 1), self._begin_id), targets[:, :-1]], axis=1) * inside
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(lengths), None, 0, 0)

    def _cut(self, max_tokens: int) -> NDArray[np.int64]:
        """Bounds of the batches over all lines by rising length, each as many rows as `max_tokens` lets in."""
        lengths = np.sort(self._lengths)
        rows = np.arange(1, self.batch_size + 1)
        bounds = [0]
        while bounds[-1] < len(lengths):
            ahead = lengths[bounds[-1] : bounds[-1] + self.batch_size]
            fit = np.searchsorted(ahead * rows[: len(ahead)], max_tokens, side="right")
            bounds.append(bounds[-1] + max(int(fit), 1))
        return np.array(bounds)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lines in the epoch's order, and the order in which the batches cut from them come."""
        known, lines, batches = self._arranged
        if known != epoch:
            lines, batches = np.arange(len(self._lengths)), np.arange(len(self))
            random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            if self._shuffle:
                random.shuffle(lines)
                random.shuffle(batches)
            for start in range(0, len(lines), self._pool):
                pool = lines[start : start + self._pool]
                lines[start : start + self._pool] = pool[np.argsort(self._lengths[pool], kind="stable")]
            self._arranged = (epoch, lines, batches)
        return lines, batches
