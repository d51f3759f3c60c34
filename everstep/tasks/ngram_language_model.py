"""The n-gram language model: p(x_t | the n - 1 tokens before), counted and smoothed by Kneser-Ney."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from everstep.data.text.text_files import filled_in
from everstep.errors import RunError
from everstep.rivals.ngrams.arpa_reader import read_arpa
from everstep.rivals.ngrams.arpa_writer import arpa_pieces
from everstep.rivals.ngrams.ngram_settings import NGramSection, fitted_table
from everstep.rivals.ngrams.ngram_table import NGramTable
from everstep.runs.counted_text import CountedRecipe, CountedTask
from everstep.runs.progress_bar import progress_bar
from everstep.runs.task import Say


class NGramLanguageModelRecipe(CountedRecipe):
    """The recipe: a text, and the longest n-gram."""

    model: NGramSection = NGramSection()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Settings of an optimisation, and units and normal forms that an ARPA file does not have."""
        yield from super().disagreements()
        if self.model.arpa and (self.data.unit, self.data.sequence) != ("words", "lines"):
            yield "model.arpa", "expected data.unit words and data.sequence lines beside it, which ARPA files have"
        if self.model.arpa and (self.data.lowercase or self.data.normal_form):
            yield "model.arpa", "expected no data.lowercase and data.normal_form beside it: its words are as they are"


class NGramLanguageModel(CountedTask[NGramLanguageModelRecipe, NGramTable]):
    """Predicts the next token from counts: scores text and generates it."""

    Recipe = NGramLanguageModelRecipe
    Table = NGramTable
    file = "ngrams.safetensors"
    files = ("tokenizer.json", file)
    formats = ("arpa",)
    _notes: Sequence[str] = ()

    def prepare(self) -> None:
        """Find the vocabulary of the training text, count its n-grams and smooth; or read the ARPA file."""
        if (arpa := self.recipe.model.arpa) is None:
            super().prepare()
        else:
            with progress_bar(f"reading {Path(arpa).name}", "n-grams") as progress:
                self.tokenizer, self.table, self._notes = read_arpa(filled_in(arpa), progress)

    def fitted(self) -> NGramTable:
        """The smoothed counts of the training text."""
        return fitted_table(self.corpus("train"), self.tokenizer, self.recipe.model)

    def ready(self, say: Say) -> None:
        """Report the splits, and what an ARPA file lacked."""
        super().ready(say)
        for note in self._notes:
            say(f"note: {note}")

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them; with an ARPA file only files for valid and test."""
        if self.recipe.model.arpa is None:
            return super().splits()
        return tuple(split for split in ("valid", "test") if getattr(self.recipe.data, split) is not None)

    def summary(self) -> list[str]:
        """Lines on the text, its vocabulary and its n-grams."""
        sizes = ", ".join(f"{len(logs):,}" for logs in self.table.log_p)
        text, *others = super().summary()
        arpa = self.recipe.model.arpa  # in place of the text
        return [
            text if arpa is None else f"ARPA file: {arpa}",
            *others,
            f"n-grams of orders 1 to {self.table.order}: {sizes}",
        ]

    def written(self, model: Any, to: str) -> Iterator[bytes]:
        """The n-grams as an ARPA file."""
        boundary = self.tokenizer.eos_id
        if boundary is None or self.recipe.data.sequence != "lines":
            raise RunError("an ARPA file is a model of sentences: count with data.sequence=lines")
        names = [self.tokenizer.decode([number]) for number in range(self.tokenizer.vocab_size)]
        yield from arpa_pieces(self.table, names, boundary)
