"""Word vectors: learn from a text which words are used alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from everstep.data import Tokenizer
from everstep.data.readers.vector_files import VectorFormat, vector_file
from everstep.data.readers.word_sets import read_analogies, read_similarities
from everstep.errors import counted
from everstep.learn.objective import Loss
from everstep.networks.word_embedding import (
    WordBatch,
    WordContextSection,
    WordEmbedding,
    WordEmbeddingSection,
    WordVectorTraining,
)
from everstep.runs.recipe import Recipe
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.runs.word_measures import MEANING, figures, neighbours
from everstep.runs.word_pictures import word_pictures
from everstep.runs.word_text import WordBatches, WordList, WordTextSection, WordVectorTexts
from everstep.sections import Count, Section
from everstep.state import State
from everstep.storage.files import replace_file


class NeighbourSection(Section):
    """What a prediction lists."""

    neighbours: Count = 10
    """nearest words of each line; `everstep predict RUN --n-best N` asks for another number, above 1"""


class WordVectorRecipe(Recipe):
    """A text, vectors of its words, and how they learn."""

    data: WordTextSection = WordTextSection()
    model: WordEmbeddingSection = WordEmbeddingSection()
    objective: WordContextSection = WordContextSection()
    decode: NeighbourSection = NeighbourSection()
    train: WordVectorTraining


class WordVectors(Task[WordVectorRecipe]):
    """Learn vectors of words by skip-gram or CBOW: neighbours, analogies, and embeddings to begin other models with."""

    Recipe = WordVectorRecipe
    files = ("tokenizer.json", "words.json")
    unit = "word"
    loss_unit = "nats of targets"
    scores = frozenset({"spearman", "analogies"})
    shown = ("loss", "spearman", "analogies")
    meaning = MEANING
    understands = frozenset({"n_best"})
    formats = get_args(VectorFormat)
    words: WordList

    @cached_property
    def texts(self) -> WordVectorTexts:
        """The text of the recipe."""
        return WordVectorTexts(self.recipe.data, self.recipe.seed)

    def prepare(self) -> None:
        """Find the words and phrases of the training text."""
        self.words = self.texts.learned()

    def ready(self, say: Say) -> None:
        """Report the text, and what the vectors are measured on."""
        data = self.recipe.data
        for line in self.summary():
            say(line)
        for split in self.splits():
            say(f"{split}: {self.texts.texts.corpus(split, self.words.tokenizer).summary()}")
        for name, pairs, _ in [] if data.similarity is None else read_similarities(data.similarity):
            say(f"similarity: {name}, {counted(len(pairs), 'pair')}")
        if data.analogies is not None:
            count = sum(len(section.questions) for section in read_analogies(data.analogies))
            say(f"analogies: {counted(count, 'question')}")

    def save(self, run: Path) -> None:
        """Write `tokenizer.json` and `words.json`."""
        replace_file(run / "tokenizer.json", self.words.tokenizer.to_bytes())
        replace_file(run / "words.json", self.words.to_bytes())

    def open(self, run: Path) -> None:
        """Read what `save` wrote."""
        self.words = WordList.load(Tokenizer.load(run / "tokenizer.json"), run / "words.json")

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.texts.texts.splits

    def model(self) -> WordEmbedding:
        """New vectors."""
        end = self.words.tokenizer.eos_id
        given = self.words.names, self.words.counts, -1 if end is None else end
        return WordEmbedding(*given, self.recipe.model, self.recipe.objective)

    def batches(self, split: str, model: Any, purpose: Purpose) -> WordBatches:
        """Pieces of the text, in its order."""
        tokens = self.texts.tokens(split, self.words)
        return WordBatches(tokens, self.words, self.recipe.train.batch_size, self.recipe.seed)

    def objective(self, model: Any, batch: WordBatch, state: State) -> Iterator[Loss]:
        """The loss of a batch without a move; in training, the model moves itself."""
        nats = torch.tensor([model.read(batch, 0.0).nats], dtype=torch.float64)
        yield Loss(nats, nats)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """The loss on a text, similarities and analogies."""
        return {**super().metrics(model, split, progress), **figures(model, self.recipe.data)}

    def validate(self, model: Any) -> dict[str, float]:
        """The loss on the split "valid", and the mean rank correlation of similarities."""
        loss, _ = self.mean_loss(model, self.batches("valid", model, "validate"))
        found = figures(model, self.recipe.data, analogies=False)
        return {"loss": loss, **{key: found[key] for key in ("spearman",) if key in found}}

    def digest(self, split: str) -> str:
        """A digest of the tokens."""
        return self.texts.texts.corpus(split, self.words.tokenizer).digest

    def summary(self) -> list[str]:
        """Lines on the text and its words."""
        return self.texts.summary(self.words)

    def asked_lines(self, verb: str) -> str:
        """Words and sums of words."""
        return "One word per line, or a sum of words, such as king - man + woman."

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """The words nearest to that of each line, or to a sum such as `king - man + woman`."""
        most = asked.n_best if asked.n_best > 1 else self.recipe.decode.neighbours
        return neighbours(model, self.words.tokenizer, most, lines)

    def written(self, model: Any, to: str) -> Iterator[bytes]:
        """The words of the vocabulary, most frequent first, and their vectors, as other programs read them."""
        rows = [int(row) for row in np.argsort(-self.words.counts, kind="stable") if self.words.counts[row]]
        yield from vector_file([model.words[row] for row in rows], model.composed()[rows], to)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Maps of frequent words, or of the words of a text."""
        yield from word_pictures(model, self.words.counts, self.words.tokenizer, out, text)
