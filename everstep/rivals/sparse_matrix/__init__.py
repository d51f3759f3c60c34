"""Sparse non-negative matrix language models: skip-grams whose adjustments are learned."""

from everstep.rivals.sparse_matrix.context_kinds import context_kinds
from everstep.rivals.sparse_matrix.count_adjustment import Adjustment, fitted_adjustment
from everstep.rivals.sparse_matrix.sparse_matrix_table import SparseMatrixTable

__all__ = ["Adjustment", "SparseMatrixTable", "context_kinds", "fitted_adjustment"]
