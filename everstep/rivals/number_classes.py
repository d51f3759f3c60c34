"""Baselines for classifiers of sequences of numbers: summaries, a linear model, nearest neighbours."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.measures import ClassMeasures, class_measures
from everstep.rivals.text_classes import require_scikit_learn

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS = 32
"""Steps to which sequences are resampled, unless all have fewer."""
MOST_FEATURES = 4096
"""Most features of the linear model; bounds the steps of wide ones."""
MOST_NUMBERS = 1 << 26
"""Most features of all sequences of the linear model together; bounds memory."""
FITTED, NEIGHBOURS, WARPED = 20_000, 4_000, 600
"""Most training sequences of the linear model, of nearest neighbours, and of those by warped time."""
ASKED = 300
"""Most test sequences of nearest neighbours by warped time."""
QUICK = 10
"""How many times fewer training sequences are used right after a training."""


class NumberSet(NamedTuple):
    """Sequences (T, D), scaled, NaN where a number is missing, and their class ids (N,)."""

    sequences: Sequence[NDArray[Any]]
    targets: Ints


def number_rivals(train: NumberSet, test: NumberSet, classes: int, quick: bool = False) -> list[dict[str, Any]]:
    """Fit baselines to `train` and measure them on `test`.

    - *majority class*, by add-one smoothed frequencies.
    - *class means of summaries*: of each number its mean, deviation, least, largest, first and last value, and the
      number of steps; the class whose mean is nearest, each summary divided by its deviation.
    - *linear, resampled*: logistic regression on all numbers of a sequence resampled to at most 32 steps (C = 1).
    - *linear, one step*: the same on the step in the middle.
    - *1-NN*: the class of the nearest training sequence of the resampled ones, by Euclidean distance.
    - *1-NN, warped*: by dynamic time warping (Sakoe 1978), of about 600 training and at most 300 test sequences.

    Where not all sequences are used, the name says how many; an even sample is, with each class of training in it.

    Args:
        train: sequences of at least two classes.
        test: sequences to measure on.
        classes: number of classes.
        quick: use fewer sequences, and leave out warped time.

    Returns:
        name, accuracy, macro_f1, loss (nats; None without probabilities) and seconds of each.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    require_scikit_learn()
    less = QUICK if quick else 1
    found = [_majority(train, test, classes), _by_summaries(train, test, classes)]
    size = math.prod(train.sequences[0].shape[1:])
    steps = min(STEPS, max(map(len, train.sequences)), max(1, MOST_FEATURES // size))
    some = _learned(train, min(FITTED // less, max(1, MOST_NUMBERS // (steps * size))))
    vectors, asked = ([resampled(one, steps).ravel() for one in of.sequences] for of in (some, test))
    found.append(_linear(f"linear, resampled to {steps}", vectors, asked, some, test, train, classes))
    if max(map(len, train.sequences)) > 1:
        middle, beside = ([_filled(one)[len(one) // 2] for one in of.sequences] for of in (some, test))
        found.append(_linear("linear, one step", middle, beside, some, test, train, classes))
    near = _learned(train, NEIGHBOURS // less)
    found.append(_nearest("1-NN", near, test, train, classes, steps, _euclidean))
    if not quick:
        near, few = _learned(train, WARPED), _some(test, ASKED)
        asked_of = (
            f", asked {len(few.targets)} of {len(test.targets):,}" if len(few.targets) < len(test.targets) else ""
        )
        found.append(_nearest(f"1-NN, warped{asked_of}", near, few, train, classes, steps, warped))
    return found


def _some(of: NumberSet, most: int) -> NumberSet:
    """An even sample."""
    every = np.arange(len(of.targets))
    chosen = np.unique(np.linspace(0, len(every) - 1, most).round().astype(int)) if len(every) > most else every
    return NumberSet([of.sequences[int(place)] for place in chosen], of.targets[chosen])


def _learned(of: NumberSet, most: int) -> NumberSet:
    """An even sample to fit, with at least one sequence of each class."""
    if len(of.targets) <= most:
        return of
    even = np.linspace(0, len(of.targets) - 1, most).round().astype(int)
    chosen = np.union1d(even, np.unique(of.targets, return_index=True)[1])
    return NumberSet([of.sequences[int(place)] for place in chosen], of.targets[chosen])


def _record(name: str, measured: ClassMeasures, start: float, used: int, of: int) -> dict[str, Any]:
    few = f", of {used:,} sequences" if used < of else ""
    figures = {"accuracy": measured.accuracy, "macro_f1": measured.macro_f1, "loss": measured.nats}
    return {"name": name + few, **figures, "seconds": time.perf_counter() - start}


def _majority(train: NumberSet, test: NumberSet, classes: int) -> dict[str, Any]:
    start = time.perf_counter()
    counts = np.bincount(train.targets, minlength=classes)
    nats = -np.log((counts + 1) / (counts.sum() + classes))
    guesses = np.full(len(test.targets), counts.argmax())
    measured = class_measures(test.targets, guesses, classes, nats[test.targets])
    return _record("majority class", measured, start, 1, 1)


def _filled(steps: NDArray[Any]) -> Floats:
    """Missing numbers by the line between their neighbours; 0 where a whole column is missing."""
    found = steps.reshape(len(steps), -1).astype(np.float64)
    at = np.arange(len(found))
    for column in found.T:
        there = ~np.isnan(column)
        if not there.all():
            column[:] = np.interp(at, at[there], column[there]) if there.any() else 0
    return found


def resampled(steps: NDArray[Any], many: int) -> Floats:
    """A sequence (T, …) at `many` evenly spaced times, by the line between steps, (many, D).

    Example:
        >>> resampled(np.array([[0.0], [np.nan], [2.0]]), 5).ravel().tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    found = _filled(steps)
    if len(found) == many:
        return found
    at = np.linspace(0, len(found) - 1, many)
    low = np.floor(at).astype(int)
    share = (at - low)[:, None]
    return found[low] * (1 - share) + found[np.minimum(low + 1, len(found) - 1)] * share  # type: ignore[no-any-return]


def _summary(steps: NDArray[Any]) -> Floats:
    rows = _filled(steps)
    return np.concatenate([rows.mean(0), rows.std(0), rows.min(0), rows.max(0), rows[0], rows[-1], [len(rows)]])


def _by_summaries(train: NumberSet, test: NumberSet, classes: int) -> dict[str, Any]:
    start = time.perf_counter()
    learned, asked = (np.stack([_summary(one) for one in of.sequences]) for of in (train, test))
    spread = learned.std(0)
    keep = spread > 1e-9
    learned, asked = (values[:, keep] / spread[keep] for values in (learned, asked))
    there = np.unique(train.targets)
    means = np.stack([learned[train.targets == k].mean(0) for k in there])
    guesses = there[_euclidean(asked, means).argmin(1)]
    return _record("class means of summaries", class_measures(test.targets, guesses, classes), start, 1, 1)


def _linear(
    name: str,
    vectors: Sequence[Floats],
    asked: Sequence[Floats],
    some: NumberSet,
    test: NumberSet,
    train: NumberSet,
    classes: int,
) -> dict[str, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    start = time.perf_counter()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.stack(vectors), some.targets)
    log_p = model.predict_log_proba(np.stack(asked))
    place = np.full(classes, -1)
    place[model.classes_] = np.arange(len(model.classes_))
    at = place[test.targets]
    nats = np.where(at < 0, np.inf, -log_p[np.arange(len(at)), at])
    measured = class_measures(test.targets, model.classes_[log_p.argmax(1)], classes, nats)
    return _record(name, measured, start, len(some.targets), len(train.targets))


def _nearest(
    name: str, near: NumberSet, test: NumberSet, train: NumberSet, classes: int, steps: int, distances: Any
) -> dict[str, Any]:
    start = time.perf_counter()
    learned, asked = (np.stack([resampled(one, steps) for one in of.sequences]) for of in (near, test))
    guesses = np.concatenate([
        near.targets[distances(asked[begin : begin + 64], learned).argmin(1)] for begin in range(0, len(asked), 64)
    ])  # fmt: skip
    return _record(name, class_measures(test.targets, guesses, classes), start, len(near.targets), len(train.targets))


def _euclidean(asked: Floats, learned: Floats) -> Floats:
    """Squared distances (A, L) of rows."""
    a, b = asked.reshape(len(asked), -1), learned.reshape(len(learned), -1)
    return (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)  # type: ignore[no-any-return]


def warped(asked: Floats, learned: Floats) -> Floats:
    """Distances by dynamic time warping: the least sum of squared distances over monotone alignments, (A, L).

    Args:
        asked: (A, T, D).
        learned: (L, T, D).

    Example:
        >>> one, late = np.array([[[0.0], [1.0], [1.0]]]), np.array([[[0.0], [0.0], [1.0]]])
        >>> warped(one, late).tolist()
        [[0.0]]
    """
    rows, columns = asked.shape[1], learned.shape[1]
    before = np.full((columns + 1, len(asked), len(learned)), math.inf)
    before[0] = 0
    for i in range(rows):
        now = np.full_like(before, math.inf)
        for j in range(columns):
            cost = _euclidean(asked[:, i], learned[:, j])
            now[j + 1] = cost + np.minimum(np.minimum(before[j], before[j + 1]), now[j])
        before = now
    found: Floats = before[-1]
    return found
