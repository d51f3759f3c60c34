"""Baselines for multi-label classifiers: one logistic regression per label."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.measures import LabelMeasures, label_measures
from everstep.rivals.text_classes import n_grams, require_scikit_learn

STRENGTH = 4.0
"""C, the inverse strength of the penalty."""
MOST_LABELS = 200


class LabelRival(NamedTuple):
    """A baseline, its measures on the test texts, and the seconds it took."""

    name: str
    measures: LabelMeasures
    seconds: float


def label_rivals(
    train: Sequence[Sequence[str]],
    labels: NDArray[np.int64],
    test: Sequence[Sequence[str]],
    targets: NDArray[np.int64],
) -> list[LabelRival]:
    """Fit baselines to `train` and evaluate them on `test`: label frequencies, words, words and pairs of words.

    Args:
        train, test: texts as words.
        labels, targets: (N, K), 1 where a text has a label. With more than MOST_LABELS labels, only the first baseline
            is computed.

    Raises:
        ConfigError: scikit-learn is not installed.

    Example:
        >>> words, there = [["so", "good"], ["so", "bad"]] * 20, np.array([[1, 0], [0, 1]] * 20)
        >>> [rival.measures.accuracy for rival in label_rivals(words, there, words, there)]
        [0.0, 1.0, 1.0]
    """
    require_scikit_learn()
    start = time.perf_counter()
    often = np.broadcast_to((labels.sum(0) + 1) / (len(labels) + 2), targets.shape)
    found = [LabelRival("how often each label is", _measured(often, targets), time.perf_counter() - start)]
    if labels.shape[1] > MOST_LABELS:
        return found
    for name, longest in (("bag of words", 1), ("bag of n-grams", 2)):
        start = time.perf_counter()
        measured = _measured(_regressions(train, labels, test, longest), targets)
        found.append(LabelRival(name, measured, time.perf_counter() - start))
    return found


def _regressions(
    train: Sequence[Sequence[str]], labels: NDArray[np.int64], test: Sequence[Sequence[str]], longest: int
) -> NDArray[Any]:
    """The probability of each label for the test texts, (N, K)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(analyzer=partial(n_grams, longest=longest), binary=True)
    given, asked = vectors.fit_transform(train), vectors.transform(test)
    p = []
    for there in labels.T:
        if there.min() == there.max():  # all texts have the label, or none
            p.append(np.full(len(test), float(there[0])))
            continue
        model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=0).fit(given, there)
        p.append(model.predict_proba(asked)[:, 1])
    return np.stack(p, axis=1)


def _measured(p: NDArray[Any], targets: NDArray[np.int64]) -> LabelMeasures:
    bounded = np.clip(p, 1e-12, 1 - 1e-12)
    nats = -np.where(targets > 0, np.log(bounded), np.log1p(-bounded)).sum(1)
    return label_measures(targets, p >= 0.5, nats)
