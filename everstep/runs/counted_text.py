"""What language models of counts share: a text whose lines are sentences, a table, and nothing to optimise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from everstep.data import Batches, Tokenizer
from everstep.data.batches import TokenBatch
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.learn.objective import Loss
from everstep.learn.settings import FitSettings
from everstep.networks.ngram_model import NGramModel
from everstep.networks.scoring import Score, scored_in_order, scored_lines
from everstep.networks.streaming import stepped_decoder
from everstep.rivals.ngrams.ngram_table import NGramTable
from everstep.rivals.sparse_matrix.sparse_matrix_table import SparseMatrixTable
from everstep.runs.task import Purpose
from everstep.runs.text_data import TextSection, exact_batches
from everstep.runs.text_task import TextRecipe, TextTask
from everstep.sections import Count
from everstep.state import State
from everstep.storage.files import replace_file


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


class CountedRecipe(TextRecipe):
    """The recipe: a text. Nothing is optimised, so that `train` keeps its defaults."""

    data: LinesSection = LinesSection()
    decode: SamplingSection = SamplingSection()
    train: NoSteps = NoSteps()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Settings of an optimisation."""
        yield from super().disagreements()
        for name, value in self.train:
            if value != NoSteps.model_fields[name].default and name not in ("threads", "device"):
                yield f"train.{name}", f"expected no such key, since nothing is optimised; got {value!r}"


R = TypeVar("R", bound=CountedRecipe)
T = TypeVar("T", NGramTable, SparseMatrixTable)


class CountedTask(TextTask[R], Generic[R, T]):
    """A job that predicts the next token by a table of counts. A subclass says what the table is, and fits it.

    Attributes:
        Table: the class of the table.
        file: the name of its file.
        table: the table, once there is one.
    """

    optimised = False
    Table: ClassVar[type[Any]]
    file: ClassVar[str]
    table: T

    @abstractmethod
    def fitted(self) -> T:
        """The table of the training text."""

    def prepare(self) -> None:
        """Find the vocabulary of the training text, and count it."""
        super().prepare()
        self.table = self.fitted()

    def save(self, run: Path) -> None:
        """`tokenizer.json` and the table."""
        super().save(run)
        replace_file(run / self.file, self.table.pieces())

    def open(self, run: Path) -> None:
        """Read `tokenizer.json`, and map the table into memory."""
        self.tokenizer = Tokenizer.load(run / "tokenizer.json")
        self.table = self.Table.mapped(run / self.file)

    def model(self) -> NGramModel:
        """The table as a model."""
        return NGramModel(self.table)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[TokenBatch]:
        """One lane over the text, or its lines, in order."""
        return exact_batches(self.recipe.data, self.corpus(split), self.tokenizer)

    def objective(self, model: Any, batch: TokenBatch, state: State) -> Iterator[Loss]:
        """−log p of each next token."""
        yield model.loss(batch, state)

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line by itself, with its end if that is a token."""
        return scored_lines(model.row_log_probs, self.tokenizer, lines, first_line)

    def score_in_order(self, model: Any, lines: Sequence[str]) -> list[Score]:
        """As `score`; contexts reach over lines where the text is one stream."""
        if self.recipe.data.sequence != "stream":
            return self.score(model, lines)
        return scored_in_order(model.row_log_probs, self.tokenizer, lines)

    def decoder(self, model: Any, given: str) -> Decoder:
        """A decoder that continues the text `given`."""
        return stepped_decoder(model.step, model.initial_state(1), self.tokenizer, given)
