"""Whole lines in batches of near-equal length, for independent sentences."""

from __future__ import annotations

import numpy as np
import torch

from everstep.data.batches import TokenBatch
from everstep.data.bucket_order import Bucketed, Ints, Padded
from everstep.data.text.corpus import Corpus
from everstep.errors import DataError


class Buckets(Bucketed[TokenBatch]):
    """The sequences of a corpus, each once per epoch, in padded batches of similar length; see `BucketOrder`.

    The inputs of a line are `begin_id` and its tokens except the last; its targets are its tokens. Padding is 0 and
    lies beyond `lengths`. Lines are never cut.

    Args:
        corpus: made with `sequence="lines"` (or `"documents"`, each of which is then one row).
        batch_size: most rows in a batch.
        seed: seed of the order, which depends on seed and epoch alone.
        begin_id: the symbol before the first token (`Tokenizer.begin_id`).
        shuffle: if false, file order in pools sorted by length, the same every epoch.
        pool: batches in a pool; larger pools need less padding. 1: the lines of a batch are drawn at random.
        max_tokens: most rows × steps in a batch, padding included; see `BucketOrder`.
        even: see `BucketOrder`.

    Raises:
        DataError: there is no `begin_id`, or no tokens.
        ConfigError: a size is below 1, or the seed is negative.

    Example:
        >>> corpus = Corpus(np.array([5, 0, 6, 7, 0]), np.array([0, 2]))
        >>> batch = Buckets(corpus, 2, begin_id=0, shuffle=False).batch(0, 0)
        >>> batch.inputs.tolist(), batch.targets.tolist(), batch.lengths.tolist()
        ([[0, 5, 0], [0, 6, 7]], [[5, 0, 0], [6, 7, 0]], [2, 3])
    """

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
        even: bool = False,
    ):
        if begin_id is None:
            raise DataError("the vocabulary has no symbol that stands before a line's first; set data.eos=true")
        if not len(corpus):
            raise DataError("the corpus has no tokens: give a text that is not blank")
        self._corpus, self._begin_id = corpus, begin_id
        self._lengths = np.diff(corpus.starts, append=len(corpus))
        order = {"pool": pool, "max_tokens": max_tokens, "even": even}
        super().__init__(self._lengths, batch_size, seed=seed, shuffle=shuffle, **order)

    def made_of(self, rows: Ints) -> TokenBatch:
        """The batch of the lines with indices `rows`."""
        lengths = self._lengths[rows]
        padded = Padded.of(np.asarray(self._corpus.starts[rows]), lengths)
        targets = padded.filled(self._corpus.take(padded.places))
        inputs = np.concatenate([np.full((len(rows), 1), self._begin_id), targets[:, :-1]], axis=1) * padded.inside
        return TokenBatch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(lengths), None, 0, 0)
