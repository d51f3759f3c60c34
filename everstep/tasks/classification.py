"""Classification: a text to one class of many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from everstep.data import Batches, Tokenizer
from everstep.data.labelled_batches import LabelledBatch
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.measures import ClassMeasures
from everstep.networks.class_pictures import class_pictures, text_passage
from everstep.networks.classifying import (
    ClassSection,
    class_losses,
    class_probabilities,
    measured_classes,
    to_learn,
    to_score,
)
from everstep.networks.layers import layer_problems
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.runs.labelled_data import LabelledSection, LabelledTexts, digest, read_classes, written_classes
from everstep.runs.predictions import by_block, class_predictions
from everstep.runs.recipe import Recipe
from everstep.runs.task import Prediction, Progress, Purpose, Say, Task
from everstep.runs.text_data import UNITS
from everstep.state import State
from everstep.storage.files import replace_file


class ClassificationRecipe(Recipe):
    """Labelled texts, a network that reads each, −log p of its class."""

    data: LabelledSection = LabelledSection()
    model: ClassifierSection = ClassifierSection()
    objective: ClassSection = ClassSection()


class Classification(Task[ClassificationRecipe]):
    """Sentiment, topics, questions: reads a text, says which class it is of."""

    Recipe = ClassificationRecipe
    files = ("tokenizer.json", "classes.json")
    unit = "text"
    scores = frozenset({"accuracy", "macro_f1"})
    shown = ("accuracy", "macro_f1", "loss")
    meaning = {"loss": "mean of -ln p(class)", "accuracy": "share that is right", "macro_f1": "mean F1 of the classes"}
    tokenizer: Tokenizer
    classes: tuple[str, ...]

    def problems(self) -> Iterator[str]:
        """A cell that cannot be made."""
        yield from layer_problems(self.recipe.model, self.recipe.model.embedding_size, self.code.find)

    def prepare(self) -> None:
        """The classes and the vocabulary of the training texts."""
        self.classes, self.tokenizer = self.texts.examples("train").classes, self.texts.tokenizer()

    def ready(self, say: Say) -> None:
        """Every split's texts, and what was left out of them."""
        for line in [*self.summary(), *self.texts.told(self.classes)]:
            say(line)

    def save(self, run: Path) -> None:
        """`tokenizer.json` and `classes.json`."""
        replace_file(run / "tokenizer.json", self.tokenizer.to_bytes())
        replace_file(run / "classes.json", written_classes(self.classes))

    def open(self, run: Path) -> None:
        """What `save` wrote."""
        self.tokenizer, self.classes = Tokenizer.load(run / "tokenizer.json"), read_classes(run / "classes.json")

    @cached_property
    def texts(self) -> LabelledTexts:
        """The files of the recipe."""
        return LabelledTexts(self.recipe.data, self.recipe.seed)

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.texts.splits()

    def model(self) -> SequenceClassifier:
        """Embedding, cells, read-out, softmax."""
        recipe, sizes = self.recipe, (self.tokenizer.vocab_size, len(self.classes))
        return SequenceClassifier(*sizes, recipe.model, self.code.find, recipe.objective.label_smoothing)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[LabelledBatch]:
        """Texts of near-equal length together."""
        coded = self.texts.coded(split, self.tokenizer, self.classes)
        rows, seed = self.recipe.train.batch_size, self.recipe.seed
        return to_learn(*coded, rows, seed) if purpose == "learn" else to_score(*coded)

    def objective(self, model: Any, batch: LabelledBatch, state: State) -> Iterator[Loss]:
        """−log p(class), weighted by class if asked for."""
        return class_losses(model, batch, self._weights if model.training else None)

    @cached_property
    def _weights(self) -> Tensor | None:
        return self.recipe.objective.weights(self.texts.examples("train").ids(self.classes), len(self.classes))

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Accuracy, macro-F1, nats, and the figures of each class."""
        return self.measured(model, split, progress).report(self.classes)

    def validate(self, model: Any) -> dict[str, float]:
        """The loss, accuracy and macro-F1 of the split "valid"."""
        return self.measured(model, "valid").main

    def measured(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> ClassMeasures:
        """All figures of a split."""
        return measured_classes(model, self.batches(split, model, "score"), progress)

    def digest(self, split: str) -> str:
        """Of its texts and classes."""
        return digest(self.texts.examples(split))

    def summary(self) -> list[str]:
        """The texts, their classes, their vocabulary."""
        few = f"{len(self.classes):,} classes: {', '.join(self.classes[:10])}{', …' if len(self.classes) > 10 else ''}"
        data = self.recipe.data
        return [f"texts: {data.train}", few, f"vocabulary: {self.tokenizer.vocab_size:,} {data.unit}"]

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """label<TAB>probability of each line; all probabilities in the record."""

        def answer(block: list[str]) -> Iterator[Prediction]:
            found = class_probabilities(model, to_score(self.texts.tokens(block, self.tokenizer)))
            return class_predictions(block, found, self.classes)

        return by_block(lines, answer)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """A held-out text, or one's own, as the cells read it."""
        return text_passage(model, self.tokenizer, self.texts.passage(text, characters), UNITS[self.recipe.data.unit])

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """What knows no order, or a window alone, on the same texts."""
        return self.texts.rivals(split, self.classes, quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Which classes are taken for which, and the words that decide."""
        split, unit = self.splits()[-1], UNITS[self.recipe.data.unit]
        texts, measured = self.texts.shown(split, text), self.measured(model, split)
        yield from class_pictures(model, self.tokenizer, texts, self.classes, measured, out, unit)
