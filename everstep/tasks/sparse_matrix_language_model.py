"""The sparse non-negative matrix language model: counted n-grams and skip-grams, whose adjustments are learned."""

from __future__ import annotations

from everstep.rivals.sparse_matrix.sparse_matrix_settings import SparseMatrixSection, fitted_matrix
from everstep.rivals.sparse_matrix.sparse_matrix_table import SparseMatrixTable
from everstep.runs.counted_text import CountedRecipe, CountedTask


class SparseMatrixLanguageModelRecipe(CountedRecipe):
    """The recipe: a text, and the features of what stands before a word."""

    model: SparseMatrixSection = SparseMatrixSection()


class SparseMatrixLanguageModel(CountedTask[SparseMatrixLanguageModelRecipe, SparseMatrixTable]):
    """Predicts the next token from counts of n-grams and skip-grams: scores text and generates it."""

    Recipe = SparseMatrixLanguageModelRecipe
    Table = SparseMatrixTable
    file = "sparse_matrix.safetensors"
    files = ("tokenizer.json", file)
    no_export = "its features and adjustments have no format of other programs"

    def fitted(self) -> SparseMatrixTable:
        """The matrix of the training text."""
        return fitted_matrix(self.corpus("train"), self.tokenizer, self.recipe.model, self.recipe.seed)

    def summary(self) -> list[str]:
        """Lines on the text, its vocabulary and its features."""
        return [*super().summary(), f"features: {self.table.described()}"]
