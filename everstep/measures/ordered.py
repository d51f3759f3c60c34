"""Figures of predictions of classes in an order, where one class may be nearer to the truth than another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everstep.measures.classes import ClassMeasures


@dataclass(frozen=True)
class OrderedMeasures(ClassMeasures):
    """Those of classes, and how far off the predictions are, in places of the order."""

    @property
    def mae(self) -> float:
        """Mean of |prediction − target|."""
        return float((self.cells[:, 2] * abs(self.cells[:, 0] - self.cells[:, 1])).sum() / self.count)

    @property
    def quadratic_kappa(self) -> float:
        """1 − Σ (i − j)² n_ij / Σ (i − j)² n_i m_j / N (Cohen 1968): 1 if all are right, 0 if no better than chance.

        n_ij texts of class i are taken for j; n_i are of class i, m_j are taken for j. Where there is nothing below,
        all are of one class and right: 1.
        """
        places = np.arange(len(self.support))
        seen = float((self.cells[:, 2] * (self.cells[:, 0] - self.cells[:, 1]) ** 2).sum())
        apart = (places[:, None] - places) ** 2
        chance = float(self.support @ apart @ self.predicted) / self.count
        return 1.0 if chance == 0 else 1 - seen / chance

    @property
    def main(self) -> dict[str, float]:
        """Those of all classes together."""
        return {**super().main, "mae": self.mae, "quadratic_kappa": self.quadratic_kappa}
