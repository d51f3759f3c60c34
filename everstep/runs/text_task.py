"""What jobs on one text share: its vocabulary, its splits as tokens, and the measures of a language model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from everstep.data import Corpus, Tokenizer
from everstep.data.text.perplexity import MEANING, text_measures
from everstep.data.text.unknowns import unknown_measures
from everstep.runs.capabilities import Speller
from everstep.runs.recipe import Recipe
from everstep.runs.task import Progress, Say, Task
from everstep.runs.text_data import Texts, TextSection, exact_batches
from everstep.storage.files import replace_file


class TextRecipe(Recipe):
    """A recipe with a text."""

    data: TextSection = TextSection()


R = TypeVar("R", bound=TextRecipe)


class TextTask(Task[R]):
    """A job that predicts the next token of a text."""

    files: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    meaning = MEANING
    shown = ("nats_per_token", "perplexity", "bits_per_char")
    tokenizer: Tokenizer

    def prepare(self) -> None:
        """Find the vocabulary of the training text."""
        self.tokenizer = self.texts.tokenizer()

    def ready(self, say: Say) -> None:
        """Tokenise every split, and report it."""
        for line in [*self.summary(), *(f"{split}: {self.corpus(split).summary()}" for split in self.splits())]:
            say(line)
        if self.texts.config.unit == "chars" and self.texts.config.unk is None and self.tokenizer.unk_id is not None:
            rare = self.corpus("train").unknown > 0
            why = "data.min_count or data.max_size cuts" if rare else "data.train lacks"
            say(f"note: there are characters that {why}; they are read as <unk>")

    def save(self, run: Path) -> None:
        """`tokenizer.json`."""
        replace_file(run / "tokenizer.json", self.tokenizer.to_bytes())

    def open(self, run: Path) -> None:
        """`tokenizer.json`."""
        self.tokenizer = Tokenizer.load(run / "tokenizer.json")

    @cached_property
    def texts(self) -> Texts:
        """The texts of the recipe."""
        return Texts(self.recipe.data)

    def corpus(self, split: str) -> Corpus:
        """The tokens of a split."""
        if split not in self._corpora:
            self._corpora[split] = self.texts.corpus(split, self.tokenizer)
        return self._corpora[split]

    @cached_property
    def _corpora(self) -> dict[str, Corpus]:
        return {}

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.texts.splits

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Nats, bits, perplexity and unknown tokens of a split, read once from first to last token."""
        corpus = self.corpus(split)
        nats, tokens = self.mean_loss(model, exact_batches(self.recipe.data, corpus, self.tokenizer), progress)
        unknown = unknown_measures(corpus.unknown, tokens, self.tokenizer, self.texts.read(split))
        return {
            "tokens": tokens,
            "loss": nats,
            **unknown,
            **text_measures(nats, tokens, corpus.chars, corpus.bytes, corpus.words),
        }

    def digest(self, split: str) -> str:
        """A digest of the tokens."""
        return self.corpus(split).digest

    def summary(self) -> list[str]:
        """Lines on the text and its vocabulary."""
        data = self.recipe.data
        named = data.train if isinstance(data.train, str) else ", ".join(data.train)
        empty = [f"left out: {empty}"] if (empty := self.texts.left_out()) else []
        return [f"text: {named}", *empty, f"vocabulary: {self.tokenizer.vocab_size:,} {data.unit}"]

    def speller(self) -> Speller:
        """An incremental converter from tokens to text."""
        return self.tokenizer.speller()
