"""The n-gram language model: p(x_t | the n - 1 tokens before), counted and smoothed by Kneser-Ney."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from everstep.data import Batches, Tokenizer
from everstep.data.batches import TokenBatch
from everstep.data.text.text_files import filled_in
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.errors import RunError
from everstep.learn.objective import Loss
from everstep.learn.settings import FitSettings
from everstep.networks.ngram_model import NGramModel
from everstep.networks.scoring import Score, scored_lines
from everstep.networks.streaming import stepped_decoder
from everstep.rivals.ngrams.arpa_reader import read_arpa
from everstep.rivals.ngrams.arpa_writer import arpa_pieces
from everstep.rivals.ngrams.ngram_settings import NGramSection, fitted_table
from everstep.rivals.ngrams.ngram_table import NGramTable
from everstep.runs.task import Purpose, Say
from everstep.runs.text_data import TextSection, exact_batches
from everstep.runs.text_task import TextRecipe, TextTask
from everstep.sections import Count
from everstep.state import State
from everstep.storage.files import replace_file

TABLE = "ngrams.safetensors"


class NoSteps(FitSettings):
    """Nothing is optimised: only `threads` and `device` may be set."""

    max_epochs: Count | None = 1
    """the one pass of counting"""


class LinesSection(TextSection):
    """Files and tokens of a text, whose lines are sentences."""

    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "words"
    """kind of tokens; bpe and unigram are sub-words"""
    sequence: Literal["stream", "documents", "lines"] = "lines"
    """what n-grams stay within: the whole text, each document, each line"""


class NGramLanguageModelRecipe(TextRecipe):
    """The recipe: a text, and the longest n-gram. Nothing is optimised, so that `train` keeps its defaults."""

    data: LinesSection = LinesSection()
    model: NGramSection = NGramSection()
    decode: SamplingSection = SamplingSection()
    train: NoSteps = NoSteps()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Settings of an optimisation, and units and normal forms that an ARPA file does not have."""
        yield from super().disagreements()
        for name, value in self.train:
            if value != NoSteps.model_fields[name].default and name not in ("threads", "device"):
                yield f"train.{name}", f"expected no such key, since nothing is optimised; got {value!r}"
        if self.model.arpa and (self.data.unit, self.data.sequence) != ("words", "lines"):
            yield "model.arpa", "expected data.unit words and data.sequence lines beside it, which ARPA files have"
        if self.model.arpa and (self.data.lowercase or self.data.normal_form):
            yield "model.arpa", "expected no data.lowercase and data.normal_form beside it: its words are as they are"


class NGramLanguageModel(TextTask[NGramLanguageModelRecipe]):
    """Predicts the next token from counts: scores text and generates it."""

    Recipe = NGramLanguageModelRecipe
    optimised = False
    files = ("tokenizer.json", TABLE)
    formats = ("arpa",)
    table: NGramTable
    _notes: Sequence[str] = ()

    def prepare(self) -> None:
        """Find the vocabulary of the training text, count its n-grams and smooth; or read the ARPA file."""
        if (arpa := self.recipe.model.arpa) is not None:
            self.tokenizer, self.table, self._notes = read_arpa(filled_in(arpa))
            return
        super().prepare()
        self.table = fitted_table(self.corpus("train"), self.tokenizer, self.recipe.model)

    def ready(self, say: Say) -> None:
        """Report the splits, and what an ARPA file lacked."""
        super().ready(say)
        for note in self._notes:
            say(f"note: {note}")

    def save(self, run: Path) -> None:
        """`tokenizer.json` and the table."""
        super().save(run)
        replace_file(run / TABLE, self.table.pieces())

    def open(self, run: Path) -> None:
        """Read `tokenizer.json`, and map the table into memory."""
        self.tokenizer = Tokenizer.load(run / "tokenizer.json")
        self.table = NGramTable.mapped(run / TABLE)

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them; with an ARPA file only files for valid and test."""
        if self.recipe.model.arpa is None:
            return super().splits()
        return tuple(split for split in ("valid", "test") if getattr(self.recipe.data, split) is not None)

    def model(self) -> NGramModel:
        """The table as a model."""
        return NGramModel(self.table)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[TokenBatch]:
        """One lane over the text, or its lines, in order."""
        return exact_batches(self.recipe.data, self.corpus(split), self.tokenizer)

    def objective(self, model: Any, batch: TokenBatch, state: State) -> Iterator[Loss]:
        """−log p of each next token."""
        yield model.loss(batch, state)

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

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line by itself, with its end if that is a token."""
        return scored_lines(model.row_log_probs, self.tokenizer, lines, first_line)

    def decoder(self, model: Any, given: str) -> Decoder:
        """A decoder that continues the text `given`."""
        return stepped_decoder(model.step, model.initial_state(1), self.tokenizer, given)

    def written(self, model: Any, to: str) -> Iterator[bytes]:
        """The n-grams as an ARPA file."""
        boundary = self.tokenizer.eos_id
        if boundary is None or self.recipe.data.sequence != "lines":
            raise RunError("an ARPA file is a model of sentences: count with data.sequence=lines")
        names = [self.tokenizer.decode([number]) for number in range(self.tokenizer.vocab_size)]
        yield from arpa_pieces(self.table, names, boundary)
