"""Pretrained word vectors, in the text formats of word2vec and GloVe."""

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

from everstep.data.text.text_files import expand, file_lines
from everstep.data.word_features import WordVocabulary
from everstep.errors import DataError, RunError
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
    """Read vectors from a file: one word and its numbers per line, separated by spaces; the first line may be a header.

    If a word occurs twice, the first vector is used.

    Args:
        path: the file (plain, `.gz`, `.xz`).
        size: D.

    Raises:
        DataError: a line has another number of values, or one that is not a finite number; the message names it.
    """
    (file,) = expand(path)[:1]
    words: dict[str, None] = {}
    rows: list[NDArray[np.float32]] = []
    for number, line in enumerate(file_lines(file), 1):
        fields = line.rstrip("\n ").split(" ")
        if number == 1 and len(fields) == 2 and all(map(str.isdecimal, fields)):
            _check_size(file, number, int(fields[1]), size)
            continue
        _check_size(file, number, len(fields) - 1, size, at_least=True)
        word = " ".join(fields[:-size])  # some files have words with spaces
        try:
            vector = np.array(fields[-size:], np.float32)
        except ValueError:
            raise DataError(f"{file}, line {number}: expected {size} numbers after the word {word[:40]!r}") from None
        if not np.isfinite(vector).all():
            raise DataError(f"{file}, line {number}: the vector of {word[:40]!r} holds NaN or an infinity")
        if word not in words:
            words[word] = None
            rows.append(vector)
    if not rows:
        raise DataError(f"{file}: no vector")
    return Vectors(tuple(words), np.stack(rows))


def _check_size(file: Path, line: int, found: int, size: int, at_least: bool = False) -> None:
    if found < size or (found > size and not at_least):
        raise DataError(
            f"{file}, line {line}: expected vectors of {size} numbers (model.embedding_size), got {found}; set "
            f"model.embedding_size={found}"
        )


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
