"""N-grams of the letters of words, hashed as fastText hashes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_OFFSET, _PRIME = 2166136261, 16777619  # FNV-1a (Fowler, Noll and Vo)


def letter_ngrams(words: Sequence[str], shortest: int, longest: int, buckets: int) -> list[NDArray[np.int64]]:
    """The buckets of the n-grams of ⟨word⟩ for each word, without repetition, rising.

    An n-gram has n characters of the word between the marks `<` and `>`, at any place; a mark alone is none. Its bucket
    is the FNV-1a hash of its UTF-8, whose bytes are read as signed numbers, modulo `buckets`.

    Source: Bojanowski, Grave, Joulin and Mikolov, "Enriching Word Vectors with Subword Information", 2017; the hash is
    that of its program, fastText.

    Args:
        words: W words.
        shortest, longest: the range of n.
        buckets: the number of buckets.

    Example:
        >>> [found.tolist() for found in letter_ngrams(["ab"], 3, 3, 1000)]  # "<ab" and "ab>"
        [[508, 756]]
    """
    marked = [f"<{word}>".encode("utf-8", "surrogatepass") for word in words]
    text = np.frombuffer(b"".join(marked), np.uint8)
    signed = text.astype(np.int8).astype(np.int64).astype(np.uint32)
    begins = np.flatnonzero((text & 0xC0) != 0x80)  # the first bytes of characters
    ends = np.append(begins[1:], len(text))
    word_of = np.repeat(np.arange(len(words)), [len(word) for word in marked])[begins]
    found_words, found = [], []
    for n in range(shortest, longest + 1):
        first = np.arange(len(begins) - n + 1)
        first = first[word_of[first] == word_of[first + n - 1]]
        if n == 1:
            first = first[~_at_an_edge(first, word_of)]  # a mark alone
        found.append(_hashed(signed, begins[first], ends[first + n - 1]) % np.uint32(buckets))
        found_words.append(word_of[first])
    return _by_word(np.concatenate(found_words), np.concatenate(found).astype(np.int64), len(words))


def _at_an_edge(places: NDArray[np.int64], word_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a character is the first or the last of its word."""
    edge = np.ones(len(word_of) + 1, bool)
    edge[1:-1] = word_of[1:] != word_of[:-1]
    found: NDArray[np.bool_] = edge[places] | edge[places + 1]
    return found


def _hashed(text: NDArray[np.uint32], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The hash of each piece of a text."""
    hashes = np.full(len(starts), _OFFSET, np.uint32)
    for offset in range(int((stops - starts).max(initial=0))):
        live = starts + offset < stops
        hashes[live] = (hashes[live] ^ text[starts[live] + offset]) * np.uint32(_PRIME)
    return hashes


def _by_word(words: NDArray[np.int64], buckets: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    pairs = np.unique(np.stack([words, buckets], 1), axis=0)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, count))) if count else []
