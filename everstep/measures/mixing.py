"""Mixtures of models of the same tokens: weights by EM, and a cache as one of the models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everstep.errors import DataError

Floats = NDArray[np.float64]


def em_weights(p: Floats, tolerance: float = 1e-9, most: int = 1000) -> Floats:
    """The weights w of a mixture Σ_k w_k p_k that make observed tokens likeliest, by expectation maximisation.

    w_k ← mean over t of w_k p_k(t) / Σ_j w_j p_j(t). The log-likelihood is concave in w, so that its one maximum is
    found from equal weights (Dempster 1977, Jelinek & Mercer 1980).

    Args:
        p: (models, T) the probability of each token under each model.
        tolerance: ends when the mean log-likelihood rises by less.
        most: steps at most.

    Raises:
        DataError: a token is impossible under every model.

    >>> em_weights(np.array([[0.5, 0.5, 0.5], [1.0, 1.0, 0.0]])).round(2).tolist()
    [0.67, 0.33]
    """
    weights = np.full(len(p), 1 / len(p))
    before = -np.inf
    for _ in range(most):
        mixed = weights @ p
        if not mixed.all():
            raise DataError("a token of the validation text has probability 0 under every model of the mixture")
        now = float(np.log(mixed).mean())
        weights = weights * (p / mixed).mean(1)
        if now - before < tolerance:
            break
        before = now
    scaled: Floats = weights / weights.sum()
    return scaled


def cache_probabilities(ids: NDArray[np.int64], size: int) -> Floats:
    """The share of each token among the `size` tokens before it, or all before it where there are fewer; first 0.

    >>> cache_probabilities(np.array([3, 3, 4, 3]), 2).tolist()
    [0.0, 1.0, 0.0, 0.5]
    """
    count = len(ids)
    places = np.arange(count)
    keys = ids * count + places
    ordered = np.sort(keys)
    begin = np.maximum(places - size, 0)
    times = np.searchsorted(ordered, keys) - np.searchsorted(ordered, ids * count + begin)
    shares: Floats = times / np.maximum(places - begin, 1)
    return shares
