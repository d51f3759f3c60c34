"""Calibration: of the predictions made with probability 0.8, 80 % should be correct."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Reliability:
    """Predictions by confidence p, in B bins of equal width: bin b holds those with b/B < p ≤ (b + 1)/B.

    Attributes:
        count: (B,) int64, predictions in each bin.
        confidence: (B,) mean of p, the probability of the predicted class; 0 in an empty bin.
        accuracy: (B,) share of correct predictions; 0 in an empty bin.
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """The expected calibration error, Σ_b (n_b / N) |accuracy_b − confidence_b|, in [0, 1] (Guo 2017).

        Known limit: with few predictions it is biased upwards, even for a perfectly calibrated model.
        """
        return float((self.count * abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> Reliability:
    """Sort predictions into bins by their confidence.

    Args:
        confidence: (N,) the probability of each prediction, in [0, 1].
        right: (N,) bool, whether the prediction is correct.
        bins: B; 15 as in Guo et al. (2017), "On calibration of modern neural networks".

    Raises:
        ValueError: no predictions, shapes that differ, or probabilities outside [0, 1].

    Example:
        >>> found = reliability([0.9, 0.9, 0.6, 0.6], [True, True, True, False], bins=2)
        >>> found.count.tolist(), found.accuracy.tolist(), round(found.ece, 3)
        ([0, 4], [0.0, 0.75], 0.0)
    """
    p, hit = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if p.ndim != 1 or p.shape != hit.shape or not len(p):
        raise ValueError(f"expected (N,) probabilities and as many truth values, got shapes {p.shape} and {hit.shape}")
    if not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"confidence: expected 0 … 1, got {p.min():g} … {p.max():g}")
    places = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    full = np.maximum(count, 1)
    return Reliability(
        count, np.bincount(places, p, minlength=bins) / full, np.bincount(places, hit, minlength=bins) / full
    )
