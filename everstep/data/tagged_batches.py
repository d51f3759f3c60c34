"""Batches of sentences, each word with its features, characters and tags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from everstep.data.batches import Batches, Movable
from everstep.data.bucket_order import BucketOrder
from everstep.data.word_features import Coded, Ints


@dataclass(frozen=True, eq=False)
class TaggedBatch(Movable):
    """B sentences of at most T words, of U different forms of at most L characters.

    Attributes:
        words: (B, T) int64 numbers of words, 0 beyond each length.
        features: (B, T, F) int64.
        spelled: (U, L) int64 characters of each form, 0 beyond its length.
        spelled_lengths: (U,) int64.
        forms: (B, T) int64, which of the U each word is.
        lengths: (B,) int64.
        tags: (B, T, K) int64; −1 for a tag that training never saw.
        places: (B,) int64, the number of each sentence.
        count: words of the sentences whose tags training saw all.
    """

    words: Tensor
    features: Tensor
    spelled: Tensor
    spelled_lengths: Tensor
    forms: Tensor
    lengths: Tensor
    tags: Tensor
    places: Tensor
    count: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def known(self) -> Tensor:
        """(B,) bool: whether training saw all tags of the sentence."""
        return (self.tags >= 0).flatten(1).all(1)


class TaggedBatches(Batches[TaggedBatch]):
    """Sentences in padded batches of near-equal length; see `BucketOrder` for the order.

    Args:
        coded: S ≥ 1 sentences; one without words is a row of length 0.
        batch_size, seed, shuffle, max_tokens: as of `BucketOrder`.

    Example:
        >>> from everstep.data.word_features import WordVocabulary
        >>> words = WordVocabulary.of([["a", "b"], ["a"]])
        >>> coded = words.coded([["b", "a"], ["a"]], [], np.zeros((3, 1), np.int64))
        >>> batch = TaggedBatches(coded, 2, shuffle=False).batch(0, 0)
        >>> batch.words.tolist(), batch.spelled.tolist(), batch.forms.tolist()
        ([[1, 0], [2, 1]], [[2], [1]], [[1, 0], [0, 1]])
    """

    carries_state = False

    def __init__(
        self,
        coded: Coded,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_tokens: int | None = None,
    ):
        self.batch_size = batch_size
        self._coded = coded
        self._starts = np.cumsum(coded.lengths) - coded.lengths
        self._spelled_starts = np.cumsum(coded.spelled_lengths) - coded.spelled_lengths
        self._order = BucketOrder(coded.lengths, batch_size, seed=seed, shuffle=shuffle, max_tokens=max_tokens)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def batch(self, epoch: int, index: int) -> TaggedBatch:
        """Batch `index` of `epoch`.

        Raises:
            IndexError: no such batch.
        """
        rows = self._order.rows(epoch, index)
        coded, lengths = self._coded, self._coded.lengths[rows]
        inside, take = _padded(self._starts[rows], lengths)
        forms, which = np.unique(take(coded.forms)[inside], return_inverse=True)
        spelled_lengths = coded.spelled_lengths[forms]
        _, take_characters = _padded(self._spelled_starts[forms], spelled_lengths)
        placed = np.zeros(inside.shape, np.int64)
        placed[inside] = which
        tags = take(coded.tags)
        return TaggedBatch(
            words=torch.from_numpy(take(coded.words)),
            features=torch.from_numpy(take(coded.features)),
            spelled=torch.from_numpy(take_characters(coded.spelled)),
            spelled_lengths=torch.from_numpy(spelled_lengths),
            forms=torch.from_numpy(placed),
            lengths=torch.from_numpy(lengths),
            tags=torch.from_numpy(tags),
            places=torch.from_numpy(rows.copy()),
            count=int(lengths[(tags >= 0).all((1, 2))].sum()),
        )


def _padded(starts: Ints, lengths: Ints) -> tuple[np.ndarray, Callable[[Ints], Ints]]:
    """Where rows of these lengths are no padding, (rows, longest), and what takes such rows from a flat array."""
    steps = np.arange(max(1, int(lengths.max(initial=0))))
    inside = steps < lengths[:, None]
    source = (starts[:, None] + steps)[inside]

    def take(flat: Ints) -> Ints:
        found = np.zeros((*inside.shape, *flat.shape[1:]), np.int64)
        found[inside] = flat[source]
        return found

    return inside, take
