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
from everstep.networks.answers import Answers
from everstep.networks.class_pictures import figure_pictures, text_passage, word_pictures
from everstep.networks.classifying import MEANING, ClassSection, class_losses, measured_classes, to_learn, to_score
from everstep.networks.document_pieces import piece_losses
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.temperature import calibrate, reported
from everstep.runs.labelled_answers import answers_of, classes_of, disagreements, read_classes, written_classes
from everstep.runs.labelled_data import LabelledTexts, digest
from everstep.runs.labelled_section import LabelledSection
from everstep.runs.predictions import by_block, class_explanations, class_predictions
from everstep.runs.recipe import Recipe
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
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
    scores = frozenset({"accuracy", "macro_f1", "micro_f1", "quadratic_kappa"})
    shown = ("accuracy", "micro_f1", "macro_f1", "mae", "quadratic_kappa", "loss")
    meaning = MEANING
    understands = frozenset({"explain"})
    tokenizer: Tokenizer
    classes: tuple[str, ...]

    def problems(self) -> Iterator[str]:
        """A cell that cannot be made, and sections that do not go together."""
        yield from disagreements(self.recipe.data, self.recipe.model, self.recipe.objective)
        yield from super().problems()

    def prepare(self) -> None:
        """The classes and the vocabulary of the training texts."""
        self.classes = classes_of(self.texts.learned(), self.recipe.data, self.recipe.objective)
        self.tokenizer = self.texts.tokenizer()

    def ready(self, say: Say) -> None:
        """Every split's texts, and what was left out of them."""
        for line in [*self.summary(), *self.texts.told(self.answers)]:
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

    @cached_property
    def answers(self) -> Answers:
        """What can be said of a text."""
        return answers_of(self.classes, self.recipe.data, self.recipe.objective)

    def model(self) -> SequenceClassifier:
        """Embedding, cells, read-out, softmax."""
        recipe, words = self.recipe, self.tokenizer.vocab_size
        ways = (recipe.objective.calibrated, recipe.data.paired, self.texts.ends(self.tokenizer))
        return SequenceClassifier(words, self.answers, recipe.model, self.code.find, *ways)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[LabelledBatch]:
        """Texts of near-equal length together."""
        coded = self.texts.coded(split, self.tokenizer, self.answers, learn=purpose == "learn")
        if purpose != "learn":
            return to_score(*coded)
        model.count(to_score(*coded))
        return to_learn(*coded, self.recipe.train.batch_size, self.recipe.seed)

    def objective(self, model: Any, batch: LabelledBatch, state: State) -> Iterator[Loss]:
        """−log p(class), weighted by class if asked for."""
        weights, pieces = self._weights if model.training else None, self.recipe.objective.bptt
        return piece_losses(model, batch, weights, pieces) if pieces else class_losses(model, batch, weights)

    @cached_property
    def _weights(self) -> Tensor | None:
        return self.recipe.objective.weights(self.answers.targets(self.texts.learned(), True), len(self.classes))

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Accuracy, macro-F1, nats, calibration, and the figures of each class."""
        return reported(model, self.batches(split, model, "score"), progress)

    def validate(self, model: Any) -> dict[str, float]:
        """The loss, accuracy and macro-F1 of the split "valid", to which a temperature is fitted."""
        calibrate(model, texts := self.batches("valid", model, "score"))
        return measured_classes(model, texts).main

    def digest(self, split: str) -> str:
        """Of its texts and classes."""
        return digest(self.texts.learned(split))

    def summary(self) -> list[str]:
        """The texts, their classes, their vocabulary."""
        return self.texts.summary(self.classes, self.tokenizer)

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """label<TAB>probability of each line, all of them in the record; with `explain`, the words that decide."""
        answer = class_explanations if asked.explain else class_predictions
        return by_block(lines, lambda block: answer(model, self.tokenizer, self.texts, block))

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """A held-out text, or one's own, as the cells read it."""
        return text_passage(model, self.tokenizer, self.texts.passage(text, characters), UNITS[self.recipe.data.unit])

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """What knows no order, or a window alone, on the same texts."""
        return self.texts.rivals(split, self.answers, quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Which classes are taken for which, what probabilities are worth, and the words that decide."""
        split = self.splits()[-1]
        yield from figure_pictures(model, measured_classes(model, self.batches(split, model, "score")), out)
        yield from word_pictures(model, self.texts.shown(split, text, self.tokenizer), out)
