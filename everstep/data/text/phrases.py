"""Phrases: pairs of words that occur together more often than alone, read as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def find_phrases(tokens: NDArray[Any], ids: int, apart: Sequence[int], discount: int, threshold: float) -> Ints:
    """Pairs of neighbouring tokens (P, 2) with a score above `threshold`, the highest first.

    score(a, b) = (count(ab) − δ) N / (count(a) count(b)), with N words in the text and δ = `discount`, so that rare
    pairs are none.

    Source: Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", 2013,
    equation 6, times N as in its program word2phrase, so that a threshold suits texts of any size.

    Args:
        tokens: (N,) ids of a text.
        ids: the number of ids.
        apart: ids that are part of no phrase, such as ends of sentences.

    Example:
        >>> find_phrases(np.array([1, 2, 3, 1, 2, 4, 1, 2, 3, 3]), 5, [], 1, 2.0).tolist()
        [[1, 2]]
    """
    counts = np.bincount(tokens, minlength=ids)
    counts[list(apart)] = 0
    first, second = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    whole = (counts[first] > 0) & (counts[second] > 0)
    keys, often = np.unique(first[whole] * ids + second[whole], return_counts=True)
    pairs = np.stack([keys // ids, keys % ids], 1)
    score = (often - discount) * float(counts.sum()) / (counts[pairs[:, 0]].astype(float) * counts[pairs[:, 1]])
    found: Ints = pairs[np.argsort(-score, kind="stable")[: int((score > threshold).sum())]]
    return found


def join_phrases(tokens: NDArray[Any], pairs: Ints, into: Ints) -> NDArray[Any]:
    """The tokens with each pair, from left to right, replaced by its id in `into`.

    Example:
        >>> join_phrases(np.array([1, 2, 1, 1, 1, 3]), np.array([[1, 2], [1, 1]]), np.array([10, 11])).tolist()
        [10, 11, 1, 3]
    """
    if not len(pairs) or len(tokens) < 2:
        return tokens
    ids = 1 + max(int(tokens.max()), int(pairs.max()))
    keys = pairs[:, 0] * ids + pairs[:, 1]
    order = np.argsort(keys)
    here = tokens[:-1].astype(np.int64) * ids + tokens[1:]
    places = np.searchsorted(keys[order], here).clip(max=len(keys) - 1)
    begins = keys[order][places] == here
    # of pairs that overlap, the first, the third, ... are joined
    at = np.arange(len(begins))
    last_break = np.maximum.accumulate(np.where(begins, -1, at))
    begins &= (at - last_break) % 2 == 1
    joined = tokens.copy()
    joined[:-1][begins] = into[order[places[begins]]]
    found: NDArray[Any] = joined[np.append(True, ~begins)]
    return found
