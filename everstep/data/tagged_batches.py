"""Batches of sentences whose words have features, characters and tags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from everstep.data.batches import Movable
from everstep.data.bucket_order import Bucketed, Padded
from everstep.data.word_features import Coded, Ints


@dataclass(frozen=True, eq=False)
class TaggedBatch(Movable):
    """B sentences of at most T words, with U distinct forms of at most L characters.

    Attributes:
        words: (B, T) int64 word ids, 0 beyond each length.
        features: (B, T, F) int64.
        spelled: (U, L) int64 character ids of each form, 0 beyond its length.
        spelled_lengths: (U,) int64.
        forms: (B, T) int64, the index of each word's form in `spelled`.
        lengths: (B,) int64.
        tags: (B, T, K) int64; −1 for a tag not seen in training.
        places: (B,) int64, the index of each sentence in the data set.
        count: number of words in the sentences whose tags were all seen in training.
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
        """(B,) bool: whether all tags of the sentence were seen in training."""
        return (self.tags >= 0).flatten(1).all(1)


class TaggedBatches(Bucketed[TaggedBatch]):
    """Sentences in padded batches of near-equal length; for the order see `BucketOrder`.

    Args:
        coded: S ≥ 1 sentences; one without words is a row of length 0.
        batch_size, seed, shuffle, max_tokens, even: see `BucketOrder`.

    Example:
        >>> from everstep.data.word_features import WordVocabulary
        >>> words = WordVocabulary.of([["a", "b"], ["a"]])
        >>> coded = words.coded([["b", "a"], ["a"]], [], np.zeros((3, 1), np.int64))
        >>> batch = TaggedBatches(coded, 2, shuffle=False).batch(0, 0)
        >>> batch.words.tolist(), batch.spelled.tolist(), batch.forms.tolist()
        ([[1, 0], [2, 1]], [[2], [1]], [[1, 0], [0, 1]])
    """

    def __init__(
        self,
        coded: Coded,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_tokens: int | None = None,
        even: bool = False,
    ):
        self._coded = coded
        self._starts = np.cumsum(coded.lengths) - coded.lengths
        self._spelled_starts = np.cumsum(coded.spelled_lengths) - coded.spelled_lengths
        super().__init__(coded.lengths, batch_size, seed=seed, shuffle=shuffle, max_tokens=max_tokens, even=even)

    def made_of(self, rows: Ints) -> TaggedBatch:
        """The batch of the sentences with indices `rows`."""
        coded, lengths = self._coded, self._coded.lengths[rows]
        padded = Padded.of(self._starts[rows], lengths)
        forms, which = np.unique(coded.forms[padded.places], return_inverse=True)
        spelled_lengths = coded.spelled_lengths[forms]
        spelled = Padded.of(self._spelled_starts[forms], spelled_lengths)
        tags = padded.filled(coded.tags[padded.places])
        return TaggedBatch(
            words=torch.from_numpy(padded.filled(coded.words[padded.places])),
            features=torch.from_numpy(padded.filled(coded.features[padded.places])),
            spelled=torch.from_numpy(spelled.filled(coded.spelled[spelled.places])),
            spelled_lengths=torch.from_numpy(spelled_lengths),
            forms=torch.from_numpy(padded.filled(which)),
            lengths=torch.from_numpy(lengths),
            tags=torch.from_numpy(tags),
            places=torch.from_numpy(rows.copy()),
            count=int(lengths[(tags >= 0).all((1, 2))].sum()),
        )
