"""Pretrained word vectors, as embeddings to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from everstep.data.readers.vector_files import read_vector_file
from everstep.data.word_features import WordVocabulary
from everstep.errors import RunError
from everstep.storage.reading import read_small, reason


@dataclass(frozen=True)
class Vectors:
    """Words with vectors.

    Attributes:
        words: N distinct words.
        numbers: (N, D) float32.
    """

    words: tuple[str, ...]
    numbers: NDArray[np.float32]

    def rows(self, words: WordVocabulary) -> Tensor:
        """The vectors (V, D) for the ids of a vocabulary: that of the word, else of its lower case, else NaN."""
        places = {word: place for place, word in enumerate(self.words)}
        found = np.full((len(words.read_counts) + 1, self.numbers.shape[1]), np.nan, np.float32)
        for number, word in enumerate(words.read_counts, 1):
            place = places.get(word, places.get(word.lower()))
            if place is not None:
                found[number] = self.numbers[place]
        return torch.from_numpy(found)

    def coverage(self, words: WordVocabulary) -> str:
        """A sentence on how many training words have a vector."""
        known = set(self.words)
        covered = {word for word in words.counts if {words.read(word), words.read(word).lower()} & known}
        running, whole = sum(words.counts[word] for word in covered), sum(words.counts.values())
        return (
            f"vectors: {len(self.words):,} of {self.numbers.shape[1]} numbers; {len(covered):,} of "
            f"{len(words.counts):,} training words have one, which are {running / whole:.1%} of the running text"
        )


def read_vectors(path: str, size: int) -> Vectors:
    """Read vectors of D = `size` numbers from a file of word2vec's, GloVe's or fastText's (`read_vector_file`).

    Raises:
        DataError: the file cannot be used; the message names the line.
    """
    found = read_vector_file(path, size)
    return Vectors(found.words, found.numbers)


def saved_vectors(vectors: Vectors | None) -> bytes:
    """The vectors as a safetensors file; an empty tensor for None."""
    numbers = torch.zeros(0) if vectors is None else torch.from_numpy(vectors.numbers)
    return save({"vectors": numbers})


def vectors_of(path: Path, words: Sequence[str]) -> Vectors | None:
    """Read the result of `saved_vectors` for these words.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        numbers = load(read_small(path, 1 << 33))["vectors"].numpy()
        if numbers.ndim == 2 and len(numbers) != len(words):
            raise ValueError(f"it holds {len(numbers)} vectors of {len(words)} words")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"{path}: missing or damaged ({reason(error)})") from None
    return Vectors(tuple(words), numbers) if numbers.ndim == 2 else None
