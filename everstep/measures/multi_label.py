"""Measures of multi-label predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everstep.measures.calibration import Reliability, reliability
from everstep.measures.classes import quotient

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelMeasures:
    """Measures of N texts with any number of K labels each.

    For label k, TP, FP and FN are counted as in `ClassMeasures`. A quotient with denominator 0 is 0.

    Attributes:
        count: N.
        accuracy: share of texts whose labels are all correct, in [0, 1] ("exact match").
        micro_f1: 2 Σ TP / Σ (2 TP + FP + FN) over all labels: the F1 of single decisions.
        macro_f1: mean of `f1` over the labels that occur among targets or predictions.
        nats: mean over texts of −Σ_k ln p(target of label k), or None if it was not given.
        precision, recall, f1: (K,), for each label.
        support: (K,) int64, texts with each label.
        reliability: calibration of the single decisions, by p(label); None if p was not given.
    """

    count: int
    accuracy: float
    micro_f1: float
    macro_f1: float
    nats: float | None
    precision: Floats
    recall: Floats
    f1: Floats
    support: NDArray[np.int64]
    reliability: Reliability | None = None

    @property
    def main(self) -> dict[str, float]:
        """The measures over all labels."""
        loss = {} if self.nats is None else {"loss": self.nats}
        return {**loss, "micro_f1": self.micro_f1, "macro_f1": self.macro_f1, "accuracy": self.accuracy}

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """The measures as JSON values, with those of each label under its name."""
        figures = zip(names, self.precision, self.recall, self.f1, self.support, strict=True)
        by_label = {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in figures
        }
        ece = {} if self.reliability is None else {"ece": self.reliability.ece}
        return {"count": self.count, **self.main, **ece, "classes": by_label}


def label_measures(
    targets: ArrayLike, predictions: ArrayLike, nats: ArrayLike | None = None, p: ArrayLike | None = None
) -> LabelMeasures:
    """Compute the measures of predictions.

    Args:
        targets: (N, K) bool, the labels of each text.
        predictions: (N, K) bool.
        nats: (N,) −ln p of the targets of each text.
        p: (N, K) the probability of each label.

    Raises:
        ValueError: no targets, or shapes that differ.

    Example:
        >>> measured = label_measures([[1, 0], [1, 1]], [[1, 0], [1, 0]])
        >>> measured.accuracy, measured.micro_f1, round(measured.macro_f1, 3)
        (0.5, 0.8, 0.5)
    """
    truth, guess = np.asarray(targets, bool), np.asarray(predictions, bool)
    if truth.ndim != 2 or truth.shape != guess.shape or not truth.size:
        raise ValueError(f"expected targets and predictions of one shape (N, K), got {truth.shape} and {guess.shape}")
    right, predicted, support = (truth & guess).sum(0), guess.sum(0), truth.sum(0)
    f1 = quotient(2 * right, support + predicted)
    there = support + predicted > 0
    return LabelMeasures(
        count=len(truth),
        accuracy=float((truth == guess).all(1).mean()),
        micro_f1=float(2 * right.sum() / max(1, (support + predicted).sum())),
        macro_f1=float(f1[there].mean()) if there.any() else 0.0,
        nats=None if nats is None else float(np.mean(np.asarray(nats, np.float64))),
        precision=quotient(right, predicted),
        recall=quotient(right, support),
        f1=f1,
        support=support,
        reliability=None if p is None else reliability(np.asarray(p).ravel(), truth.ravel()),
    )
