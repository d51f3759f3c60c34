"""What word vectors are measured by: ranks of similarities, and analogies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MOST_COSINES = 1 << 24


def unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Each row divided by its length; rows of zeros stay."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    found: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found


def rank_correlation(one: Sequence[float] | Floats, other: Sequence[float] | Floats) -> float:
    """Spearman's ρ: the correlation of ranks, where equal values share the mean of theirs; NaN without two values.

    Source: Spearman, "The Proof and Measurement of Association between Two Things", 1904.

    Example:
        >>> round(rank_correlation([1.0, 2.0, 2.0, 5.0], [10.0, 30.0, 30.0, 40.0]), 6)
        1.0
    """
    first, second = _ranks(np.asarray(one, float)), _ranks(np.asarray(other, float))
    if len(first) < 2 or not first.std() * second.std():
        return float("nan")
    return float(((first - first.mean()) * (second - second.mean())).mean() / (first.std() * second.std()))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts - 1) / 2)[inverse]
    return found


class Solved(NamedTuple):
    """The answers to Q analogies: the row with the highest score by 3CosAdd, and by 3CosMul."""

    by_sum: NDArray[np.int64]
    by_product: NDArray[np.int64]


def solve_analogies(units: NDArray[np.float32], questions: NDArray[np.int64], known: NDArray[np.bool_]) -> Solved:
    """Which word is to c as b is to a, for rows (a, b, c) of `questions`; these three are never the answer.

    3CosAdd: argmax_d cos(d, b) − cos(d, a) + cos(d, c) (Mikolov, Yih and Zweig 2013). 3CosMul: argmax_d
    cos'(d, b) cos'(d, c) / (cos'(d, a) + 0.001) with cos' = (cos + 1) / 2 (Levy and Goldberg 2014).

    Args:
        units: (V, size), of length 1.
        questions: (Q, 3).
        known: (V,) which rows can be an answer.

    Example:
        >>> rows = unit_rows(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [-1, 0, 0]]))
        >>> solve_analogies(rows, np.array([[0, 1, 2]]), np.ones(5, bool)).by_sum.tolist()
        [3]
    """
    sums, products = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    rows = max(1, min(256, _MOST_COSINES // max(1, 3 * len(units))))
    for start in range(0, len(questions), rows):
        block = questions[start : start + rows]
        cosines = units[block.reshape(-1)] @ units.T
        a, b, c = cosines.reshape(len(block), 3, -1).transpose(1, 0, 2)
        halves = [(part + 1) / 2 for part in (a, b, c)]
        for scores, into in ((b - a + c, sums), (halves[1] * halves[2] / (halves[0] + 0.001), products)):
            scores[:, ~known] = -np.inf
            np.put_along_axis(scores, block, -np.inf, 1)
            into.append(scores.argmax(1))
    none = np.empty(0, np.int64)
    return Solved(np.concatenate([none, *sums]), np.concatenate([none, *products]))


class Neighbour(NamedTuple):
    """A word near another, by its row."""

    row: int
    cosine: float


def nearest_rows(
    units: NDArray[np.float32],
    vector: NDArray[np.floating],
    most: int,
    without: Sequence[int],
    known: NDArray[np.bool_],
) -> list[Neighbour]:
    """The rows with the highest cosine to `vector`, but for those `without`; ties in the order of rows."""
    length = float(np.linalg.norm(vector))
    cosines = (units @ (vector / length if length else vector)).astype(np.float64)
    cosines[~known] = -np.inf
    cosines[list(without)] = -np.inf
    order = np.argsort(-cosines, kind="stable")[:most]
    return [Neighbour(int(row), float(cosines[row])) for row in order if np.isfinite(cosines[row])]
