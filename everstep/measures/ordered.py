"""Measures of predictions of ordered classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everstep.measures.classes import ClassMeasures


@dataclass(frozen=True)
class OrderedMeasures(ClassMeasures):
    """`ClassMeasures`, plus measures of the distance between prediction and target, in ranks."""

    @property
    def mae(self) -> float:
        """Mean of |prediction − target|."""
        return float((self.cells[:, 2] * abs(self.cells[:, 0] - self.cells[:, 1])).sum() / self.count)

    @property
    def quadratic_kappa(self) -> float:
        """1 − Σ (i − j)² n_ij / (Σ (i − j)² n_i m_j / N) (Cohen 1968): 1 if all are correct, 0 at chance level.

        n_ij counts targets i predicted as j, n_i targets i, m_j predictions j. If the denominator is 0, all targets and
        predictions are one class, and the result is 1.
        """
        places = np.arange(len(self.support))
        seen = float((self.cells[:, 2] * (self.cells[:, 0] - self.cells[:, 1]) ** 2).sum())
        apart = (places[:, None] - places) ** 2
        chance = float(self.support @ apart @ self.predicted) / self.count
        return 1.0 if chance == 0 else 1 - seen / chance

    @property
    def main(self) -> dict[str, float]:
        """The measures over all classes."""
        return {**super().main, "mae": self.mae, "quadratic_kappa": self.quadratic_kappa}
