"""Mixtures, caches and the paired bootstrap, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from everstep.errors import DataError
from everstep.measures.bootstrap import paired_difference
from everstep.measures.mixing import cache_probabilities, em_weights


def test_weights_are_the_best_of_a_grid() -> None:
    p = np.random.default_rng(1).uniform(0.01, 1, (3, 400)) ** 3
    found = em_weights(p)
    grid = np.array([(a, b, 100 - a - b) for a in range(101) for b in range(101 - a)]) / 100
    best = np.log(np.clip(grid @ p, 1e-300, None)).mean(1).max()
    assert np.log(found @ p).mean() >= best - 1e-7
    assert abs(found.sum() - 1) < 1e-12


def test_a_token_that_no_model_allows_is_refused() -> None:
    with pytest.raises(DataError, match="probability 0"):
        em_weights(np.zeros((2, 1)))


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_a_cache_counts_the_tokens_before(size: int) -> None:
    ids = np.random.default_rng(2).integers(0, 6, 200)
    found = cache_probabilities(ids, size)
    for place in range(len(ids)):
        before = ids[max(0, place - size) : place]
        assert found[place] == (np.mean(before == ids[place]) if len(before) else 0)


def test_the_interval_of_a_difference_covers_it() -> None:
    random = np.random.default_rng(3)
    ours, sizes = random.normal(10, 2, 500), random.integers(20, 60, 500).astype(float)
    difference, low, high = paired_difference(ours + 0.5 + random.normal(0, 0.2, 500), ours, sizes)
    assert low < difference < high
    assert low > 0
    assert abs(difference - 0.5 / 40) < 0.002
    expected = 1.96 * np.sqrt(0.2**2 + 0.0) / np.sqrt(500) / 40
    assert (high - low) / 2 == pytest.approx(expected, rel=0.5)
    assert paired_difference(ours, ours, sizes) == (0, 0, 0)
