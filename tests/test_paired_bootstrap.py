"""Paired bootstrap resampling of BLEU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.measures.bleu import translation_measures
from everstep.measures.paired_bootstrap import bleu_of, bleu_statistics, paired_bootstrap

TEXTS = st.lists(st.sampled_from(["a", "b", "C", "dog.", "it's", "3,5"]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_bleu_of_the_statistics_is_that_of_sacrebleu(
    pairs: list[tuple[str, str]], tokenised: bool, lowercase: bool
) -> None:
    found, references = (list(side) for side in zip(*pairs, strict=True))
    counts = bleu_statistics(found, references, tokenised, lowercase)
    assert float(bleu_of(counts.sum(0))) == pytest.approx(
        translation_measures(found, references, tokenised, lowercase)["bleu"], abs=1e-9
    )


def test_what_is_counted_by_hand() -> None:
    (row,) = bleu_statistics(["a b a b c"], ["a b c a"], tokenised=True)
    # matching: a 2, b 1, c 1; ab 1, bc 1; abc 1; of 5, 4, 3, 2 n-grams
    assert row.tolist() == [5, 4, 4, 2, 1, 0, 5, 4, 3, 2]
    assert float(bleu_of(row)) == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * (0.5 / 2)) ** 0.25)


def systems(texts: int, better: float) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of two systems: the first has each word right with a probability that is higher by `better`."""
    random = np.random.default_rng(3)
    references = [[str(word) for word in random.integers(0, 50, 12)] for _ in range(texts)]

    def wrong(share: float) -> list[str]:
        return [" ".join(word if random.random() > share else "x" for word in row) for row in references]

    targets = [" ".join(row) for row in references]
    one, other = (bleu_statistics(wrong(share), targets, tokenised=True) for share in (0.3 - better, 0.3))
    return one, other


def test_a_difference_is_told_from_chance() -> None:
    found = paired_bootstrap(*systems(300, 0.1))
    assert found.difference > 5
    assert found.low > 0
    assert found.wins == 1.0
    assert found.p < 0.01
    back = paired_bootstrap(*systems(300, 0.1)[::-1])
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert back.wins == 0.0


def test_chance_is_not_told_from_a_difference() -> None:
    found = paired_bootstrap(*systems(100, 0.0))
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_the_interval_is_that_of_brute_force() -> None:
    one, other = systems(200, 0.05)
    found = paired_bootstrap(one, other, samples=2000, seed=1)
    random = np.random.default_rng(9)
    every = []
    for _ in range(2000):
        rows = random.integers(0, 200, 200)
        every.append(float(bleu_of(one[rows].sum(0)) - bleu_of(other[rows].sum(0))))
    low, high = np.percentile(every, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.4)
    assert paired_bootstrap(one, other, samples=2000, seed=1) == found


def test_systems_that_cannot_be_compared() -> None:
    one, other = systems(10, 0.0)
    with pytest.raises(ValueError, match=r"the same texts of both, got 10 and 9"):
        paired_bootstrap(one, other[:9])
    with pytest.raises(ValueError, match="at least 1"):
        paired_bootstrap(one, other, samples=0)
    with pytest.raises(ValueError, match="one reference for each"):
        bleu_statistics(["a"], [])
    assert float(bleu_of(np.zeros(10, np.int64))) == 0.0
