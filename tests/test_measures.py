"""Figures of a classifier: by hand, and beside scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from everstep.measures import class_measures


def test_figures_by_hand():
    measured = class_measures([0, 0, 0, 1, 1, 3], [0, 0, 1, 1, 0, 0], classes=5, nats=[0.5] * 5 + [2.0])
    assert_array_equal(
        measured.confusion(),
        [[2, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [1, 0, 0, 0, 0], [0] * 5],
    )
    assert measured.count == 6
    assert measured.accuracy == 0.5
    assert_array_equal(measured.support, [3, 2, 0, 1, 0])
    assert_array_equal(measured.predicted, [4, 2, 0, 0, 0])
    assert_allclose(measured.precision, [1 / 2, 1 / 2, 0, 0, 0])
    assert_allclose(measured.recall, [2 / 3, 1 / 2, 0, 0, 0])
    assert_allclose(measured.f1, [4 / 7, 1 / 2, 0, 0, 0])
    assert measured.macro_f1 == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)  # class 2 and 4 occur nowhere
    assert measured.nats == 0.75
    assert_array_equal(measured.cells, [[0, 0, 2], [0, 1, 1], [1, 0, 1], [1, 1, 1], [3, 0, 1]])


@settings(deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(st.just(k), st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1))
    )
)
def test_figures_are_those_of_scikit_learn(drawn):
    sklearn = pytest.importorskip("sklearn.metrics")
    classes, pairs = drawn
    targets, predictions = np.array(pairs).T
    measured = class_measures(targets, predictions, classes)
    labels = np.arange(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that occurs nowhere
        one_by_one = sklearn.precision_recall_fscore_support(targets, predictions, labels=labels, zero_division=0)
        macro = sklearn.f1_score(targets, predictions, average="macro")
        accuracy = sklearn.accuracy_score(targets, predictions)
        confusion = sklearn.confusion_matrix(targets, predictions, labels=labels)
    for mine, theirs in zip(
        (measured.precision, measured.recall, measured.f1, measured.support), one_by_one, strict=True
    ):
        assert_allclose(mine, theirs)
    assert measured.macro_f1 == pytest.approx(macro)
    assert measured.accuracy == pytest.approx(accuracy)
    assert_array_equal(measured.confusion(), confusion)


def test_many_classes_take_little_memory():
    random = np.random.default_rng(0)
    targets, predictions = random.integers(0, 10**6, (2, 1000))
    measured = class_measures(targets, predictions, classes=10**6)
    assert measured.cells.shape == (1000, 3)
    assert measured.cells[:, 2].sum() == measured.support.sum() == 1000


@pytest.mark.parametrize(
    ("targets", "predictions", "nats", "told"),
    [
        ([], [], None, "at least one target"),
        ([0, 1], [0], None, "got 1 for 2"),
        ([0, 2], [0, 1], None, r"targets: expected ids 0 … 1, got 0 … 2"),
        ([0, 1], [0, -1], None, r"predictions: expected ids 0 … 1, got -1 … 0"),
        ([0.0], [0], None, "targets: expected whole numbers, got float64"),
        ([True], [0], None, "targets: expected whole numbers, got bool"),
        ([[0]], [0], None, r"shape \(1, 1\)"),
        ([0], [0], [1.0, 2.0], r"nats: expected one number or shape \(1,\), got shape \(2,\)"),
    ],
)
def test_what_makes_no_sense_is_refused(targets, predictions, nats, told):
    with pytest.raises(ValueError, match=told):
        class_measures(targets, predictions, 2, nats)


def test_ids_may_be_of_any_whole_type():
    measured = class_measures(np.array([0, 200], np.uint8), np.array([0, 200], np.int16), 201)
    assert measured.accuracy == measured.macro_f1 == 1.0
    assert measured.nats is None
