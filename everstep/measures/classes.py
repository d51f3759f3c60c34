"""Measures of a classifier, from the ids of targets and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everstep.measures.calibration import Reliability, reliability


@dataclass(frozen=True)
class ClassMeasures:
    """Measures of N predictions among K classes.

    For class k, TP counts targets k predicted as k, FP other targets predicted as k, FN targets k predicted as another
    class. A quotient with denominator 0 is 0.

    Attributes:
        count: N.
        accuracy: share of correct predictions, in [0, 1].
        macro_f1: mean of `f1` over the classes that occur among targets or predictions, in [0, 1]; equal to
            scikit-learn's `f1_score(average="macro")`.
        nats: mean of −ln p(target), or None if it was not given.
        precision: (K,) TP / (TP + FP).
        recall: (K,) TP / (TP + FN).
        f1: (K,) 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall.
        support: (K,) int64, targets of each class.
        predicted: (K,) int64, predictions of each class.
        cells: (M, 3) int64: (target, prediction, count) of each pair that occurs, sorted by the first two.
        reliability: calibration of the predictions, or None if their probabilities were not given.
    """

    count: int
    accuracy: float
    macro_f1: float
    nats: float | None
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    predicted: NDArray[np.int64]
    cells: NDArray[np.int64]
    reliability: Reliability | None = None

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """The measures as JSON values, with those of each class under its name."""
        figures = zip(names, self.precision, self.recall, self.f1, self.support, strict=True)
        by_class = {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in figures
        }
        ece = {} if self.reliability is None else {"ece": self.reliability.ece}
        return {"count": self.count, **self.main, **ece, "classes": by_class}

    @property
    def main(self) -> dict[str, float]:
        """The measures over all classes."""
        loss = {} if self.nats is None else {"loss": self.nats}
        return {**loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}

    def confusion(self, classes: ArrayLike | None = None) -> NDArray[np.int64]:
        """The confusion matrix: how often target i was predicted as j, at [i, j].

        (K, K), or only the rows and columns of some classes, in rising order. Computed on demand, since 10,000 classes
        take 800 MB.
        """
        some = np.arange(len(self.support)) if classes is None else np.asarray(classes)
        place = np.full(len(self.support), -1)
        place[some] = np.arange(len(some))
        of, taken, often = place[self.cells[:, 0]], place[self.cells[:, 1]], self.cells[:, 2]
        known = (of >= 0) & (taken >= 0)
        table = np.zeros((len(some),) * 2, np.int64)
        table[of[known], taken[known]] = often[known]
        return table


def class_measures(
    targets: ArrayLike,
    predictions: ArrayLike,
    classes: int,
    nats: ArrayLike | None = None,
    confidence: ArrayLike | None = None,
) -> ClassMeasures:
    """Compute the measures of predictions.

    Args:
        targets: (N,) class ids, 0 … classes − 1.
        predictions: (N,) class ids.
        classes: K, the number of classes.
        nats: (N,) −ln p(target), or their mean.
        confidence: (N,) the probability of each prediction.

    Raises:
        ValueError: no targets, shapes that differ, ids that are not whole numbers or out of range.

    Example:
        >>> measured = class_measures([0, 0, 1, 1], [0, 1, 1, 1], classes=2)
        >>> measured.accuracy, round(measured.macro_f1, 3), measured.confusion().tolist()
        (0.75, 0.733, [[1, 1], [0, 2]])
    """
    truth, guess = _ids("targets", targets, classes), _ids("predictions", predictions, classes)
    if len(truth) != len(guess):
        raise ValueError(f"expected as many predictions as targets, got {len(guess)} for {len(truth)}")
    if not len(truth):
        raise ValueError("expected at least one target, got none")
    pairs, often = np.unique(truth * classes + guess, return_counts=True)
    support, predicted = np.bincount(truth, minlength=classes), np.bincount(guess, minlength=classes)
    right = np.bincount(truth[truth == guess], minlength=classes)
    f1 = quotient(2 * right, support + predicted)
    return ClassMeasures(
        count=len(truth),
        accuracy=float(right.sum() / len(truth)),
        macro_f1=float(f1[(support + predicted) > 0].mean()),
        nats=None if nats is None else _mean(nats, len(truth)),
        precision=quotient(right, predicted),
        recall=quotient(right, support),
        f1=f1,
        support=support,
        predicted=predicted,
        cells=np.stack([pairs // classes, pairs % classes, often], axis=1),
        reliability=None if confidence is None else reliability(confidence, truth == guess),
    )


def _ids(name: str, values: ArrayLike, classes: int) -> NDArray[np.int64]:
    ids = np.asarray(values)
    if ids.ndim != 1:
        raise ValueError(f"{name}: expected class ids of shape (N,), got shape {ids.shape}")
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name}: expected whole numbers, got {ids.dtype}")
    if ids.size and not (ids.min() >= 0 and ids.max() < classes):
        raise ValueError(f"{name}: expected ids 0 … {classes - 1}, got {ids.min()} … {ids.max()}")
    return ids.astype(np.int64)


def quotient(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def _mean(nats: ArrayLike, count: int) -> float:
    values = np.asarray(nats, np.float64)
    if values.shape not in ((), (count,)):
        raise ValueError(f"nats: expected one number or shape ({count},), got shape {values.shape}")
    return float(values.mean())
