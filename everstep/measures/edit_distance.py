"""Word and character error rates: edit distances over the lengths of the references."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np


def edit_distance(reference: Sequence[Hashable], found: Sequence[Hashable]) -> int:
    """The least number of substitutions, deletions and insertions between two sequences (Levenshtein 1966).

    d(i, j) = min(d(i−1, j) + 1, d(i, j−1) + 1, d(i−1, j−1) + [a_i ≠ b_j]), d(i, 0) = i, d(0, j) = j.

    >>> edit_distance("kitten", "sitting"), edit_distance("X Y X".split(), "X Z".split())
    (3, 2)
    """
    number: dict[Hashable, int] = {}
    ours, theirs = (np.array([number.setdefault(one, len(number)) for one in each]) for each in (reference, found))
    columns = np.arange(len(theirs) + 1)
    row = columns
    for i, symbol in enumerate(ours, 1):
        above = np.minimum(row[1:] + 1, row[:-1] + (theirs != symbol))
        # min_k≤j (above_k + j − k), the insertions after the best of the others
        row = np.minimum.accumulate(np.append(i, above) - columns) + columns
    return int(row[-1])


class ErrorRates(NamedTuple):
    """Errors of texts against references.

    Attributes:
        wer: edits of words per word of the references.
        cer: edits of characters, spaces among them, per character of the references.
        sentence_accuracy: the share of texts without an error.
    """

    wer: float
    cer: float
    sentence_accuracy: float


def error_rates(pairs: Iterable[tuple[str, str]]) -> ErrorRates:
    """The error rates of (reference, found) texts; words are what white space separates.

    Where the references hold no word (or character), the rate counts the edits themselves, per one.

    >>> error_rates([("this is a test", "this test"), ("one", "one")])
    ErrorRates(wer=0.4, cer=0.29411764705882354, sentence_accuracy=0.5)
    """
    words = characters = said = spelled = right = count = 0
    for reference, found in pairs:
        ours, theirs = reference.split(), found.split()
        words, said = words + edit_distance(ours, theirs), said + len(ours)
        ours_spelled, theirs_spelled = " ".join(ours), " ".join(theirs)
        characters, spelled = characters + edit_distance(ours_spelled, theirs_spelled), spelled + len(ours_spelled)
        right, count = right + (ours == theirs), count + 1
    return ErrorRates(words / max(said, 1), characters / max(spelled, 1), right / max(count, 1))
