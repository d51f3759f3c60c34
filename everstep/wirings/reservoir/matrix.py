"""Sparse random matrices and their spectral radius."""

from __future__ import annotations

from typing import Any

import numpy as np

DENSE = 300
"""Units up to which all eigenvalues are computed."""


def random_connections(units: int, connections: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Columns and weights, each (units, connections): every unit reads `connections` units, possibly itself.

    The columns of a row are drawn without replacement and sorted; the weights are uniform in (−1, 1), rounded to
    bfloat16, which does not matter for random weights and halves the bytes that the loop reads.
    """
    columns = np.empty((units, connections), np.int32)
    for row in columns:
        row[:] = np.sort(rng.choice(units, connections, replace=False, shuffle=False))
    weights = rng.uniform(-1, 1, (units, connections)).astype(np.float32)
    bits = (weights.view(np.uint32) + 0x8000) & 0xFFFF0000
    return columns, bits.astype(np.uint32).view(np.float32).astype(np.float64)


def connections_of(matrix: Any) -> tuple[Any, Any]:
    """Columns and weights, each (units, most connections of a unit), for a square array or scipy.sparse matrix.

    Rows with fewer connections are padded with connections of weight 0.

    Raises:
        ValueError: NaN or infinity.
    """
    import scipy.sparse

    rows = scipy.sparse.csr_array(matrix, dtype=np.float64)
    if not np.isfinite(rows.data).all():
        raise ValueError("Reservoir: the matrix holds NaN or infinity")
    rows.eliminate_zeros()
    rows.sort_indices()
    degrees = np.diff(rows.indptr)
    columns = np.zeros((rows.shape[0], int(degrees.max(initial=0))), np.int32)
    weights = np.zeros(columns.shape)
    taken = np.arange(columns.shape[1]) < degrees[:, None]
    columns[taken], weights[taken] = rows.indices, rows.data
    return columns, weights


def spectral_radius(matrix: Any) -> float:
    """ρ(W) = max |λ_i(W)|, the largest absolute value of an eigenvalue, to a relative 1e-8.

    Up to a few hundred units all eigenvalues are computed. Above, the six largest, by implicitly restarted Arnoldi
    iteration (Lehoucq, Sorensen & Yang 1998, ARPACK) in a large basis: the eigenvalues of a random matrix cluster at
    the edge of their disc, and a small basis, or a single eigenvalue, may miss the largest. If it does not converge,
    all are computed. The start vector is fixed, so the result is deterministic.

    >>> spectral_radius([[0.0, 2.0], [0.5, 0.0]])
    1.0

    Args:
        matrix: square, a scipy.sparse matrix or an array.

    Known limit: the eigenvalues found are exact; that none larger exists is verified in the tests, against all
    eigenvalues, but not for each matrix.

    Raises:
        ValueError: the matrix is not square, or holds NaN or infinity.
    """
    import scipy.sparse
    from scipy.sparse.linalg import ArpackError, eigs

    rows = scipy.sparse.csr_array(matrix, dtype=np.float64)
    units = rows.shape[0]
    if rows.ndim != 2 or rows.shape != (units, units):
        raise ValueError(f"spectral_radius: the matrix should be square, but has shape {rows.shape}")
    if not np.isfinite(rows.data).all():
        raise ValueError("spectral_radius: the matrix holds NaN or infinity")
    if not rows.nnz or _acyclic(rows):
        return 0.0
    if units > DENSE:
        try:
            start = np.random.default_rng(0).standard_normal(units)
            found = eigs(rows, 6, ncv=150, tol=1e-9, v0=start, return_eigenvectors=False)
            return float(np.abs(found).max())
        except ArpackError:
            pass
    return float(np.abs(np.linalg.eigvals(rows.toarray())).max())


def _acyclic(rows: Any) -> bool:
    """Whether no unit feeds back to itself, even indirectly: then W is nilpotent, which rounding would hide."""
    from scipy.sparse.csgraph import connected_components

    nonzero = rows.copy()
    nonzero.eliminate_zeros()
    parts, _ = connected_components(nonzero, directed=True, connection="strong")
    return bool(parts == rows.shape[0] and not nonzero.diagonal().any())
