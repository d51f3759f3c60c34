"""The mean of each class as a classifier: what very many classes leave time and memory for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ClassMeans:
    """p(k | x) ∝ e^(β cos(x, m_k)), with m_k the mean of the vectors of class k (Rocchio 1971, of two classes).

    Time and memory of a fit follow the nonzero numbers of the vectors, whatever the number of classes.

    Args:
        vectors: sparse (N, F), rows of length 1 or 0.
        targets: (N,) class ids from 0.
        sharpness: β > 0.

    Attributes:
        classes_: (C,) the ids that occur, ascending.

    Example:
        >>> from scipy.sparse import csr_array
        >>> model = ClassMeans(csr_array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 7]), sharpness=2.0)
        >>> int(model.predict_log_proba(csr_array([[0.0, 1.0]])).argmax())
        1
    """

    def __init__(self, vectors: Any, targets: NDArray[np.int64], sharpness: float):
        from scipy.sparse import csr_array
        from sklearn.preprocessing import normalize

        self.classes_, rows = np.unique(targets, return_inverse=True)
        shape = len(self.classes_), len(rows)
        members = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=shape)
        self._means, self.sharpness = normalize(members @ vectors).T.tocsr(), sharpness

    def predict_log_proba(self, vectors: Any) -> NDArray[np.float64]:
        """log p(k | x), (N, C)."""
        scores = self.sharpness * (vectors @ self._means).toarray()
        scores -= scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]
