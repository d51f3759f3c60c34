"""Ridge regression from the values of a window to those that follow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class LagRidge:
    """ŷ = W x: the W that minimises Σ ‖y − W x‖² + λ N ‖W‖², over N windows x (W,) and what follows, y (H,).

    Windows come about their last value, so that no intercept is needed.

    Attributes:
        count: windows that came.

    >>> fitted = LagRidge()
    >>> fitted.add(np.eye(2), np.array([[1.0], [2.0]]))
    >>> fitted.solve(0.0).round(6).tolist()
    [[1.0, 2.0]]
    """

    def __init__(self) -> None:
        self._products: Floats = np.zeros((0, 0))
        self._targets: Floats = np.zeros((0, 0))
        self.count = 0

    def add(self, windows: Floats, targets: Floats) -> None:
        """Take in windows (N, W) and targets (N, H) without gaps."""
        if not self.count:
            self._products = np.zeros((windows.shape[1],) * 2)
            self._targets = np.zeros((windows.shape[1], targets.shape[1]))
        self._products += windows.T @ windows
        self._targets += windows.T @ targets
        self.count += len(windows)

    def solve(self, penalty: float) -> Floats:
        """W, (H, W), for λ = `penalty` times the mean square of a lag.

        Raises:
            ValueError: no window came.
        """
        if not self.count:
            raise ValueError("LagRidge: there is nothing to solve, add windows first")
        mean = float(np.trace(self._products)) / len(self._products)
        loaded = self._products + (penalty * mean + 1e-12 * max(mean, 1e-12)) * np.eye(len(self._products))
        return np.linalg.solve(loaded, self._targets).T.astype(np.float64)


def carried(targets: Floats) -> Floats:
    """Fill the gaps of targets (N, H) with the value before; gaps at the start with 0, the level of the window.

    >>> carried(np.array([[np.nan, 2.0, np.nan, 3.0]])).tolist()
    [[0.0, 2.0, 2.0, 3.0]]
    """
    last = np.maximum.accumulate(np.where(np.isnan(targets), -1, np.arange(targets.shape[1])), 1)
    return np.where(last < 0, 0.0, np.take_along_axis(targets, np.maximum(last, 0), 1))
