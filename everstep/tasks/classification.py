"""Classification of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from everstep.data import Batches, Tokenizer
from everstep.data.labelled_batches import LabelledBatch
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.class_pictures import figure_pictures, text_passage, word_pictures
from everstep.networks.classifying import class_losses, measured_classes, to_learn, to_score
from everstep.networks.document_pieces import piece_losses
from everstep.networks.forms import Exported
from everstep.networks.model_forms import classifier_forms
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.stand_ins import ClassifierStandIn, Runtime
from everstep.runs.class_task import ClassRecipe, ClassTask
from everstep.runs.labelled_answers import classes_of, disagreements, read_classes, written_classes
from everstep.runs.labelled_data import LabelledTexts, digest
from everstep.runs.labelled_section import LabelledSection
from everstep.runs.number_section import holds_numbers
from everstep.runs.predictions import by_block, class_explanations, class_predictions
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Purpose, Say, Task
from everstep.runs.text_data import UNITS
from everstep.state import State
from everstep.storage.files import replace_file


class ClassificationRecipe(ClassRecipe):
    """The recipe: labelled texts, a classifier, −log p of the class."""

    data: LabelledSection = LabelledSection()
    model: ClassifierSection = ClassifierSection()


class Classification(ClassTask[ClassificationRecipe]):
    """Predicts the class of a text: sentiment, topics, kinds of questions."""

    Recipe = ClassificationRecipe
    files = ("tokenizer.json", "classes.json")
    unit = "text"
    understands = frozenset({"explain"})
    tokenizer: Tokenizer

    @classmethod
    def for_data(cls, data: Mapping[str, Any]) -> type[Task[Any]]:
        """The job for sequences of numbers, if the files hold such."""
        if not holds_numbers(data):
            return cls
        from everstep.tasks.number_classification import NumberClassification

        return NumberClassification

    def problems(self) -> Iterator[str]:
        """A cell that cannot be created, and incompatible sections."""
        yield from disagreements(self.recipe.data, self.recipe.model, self.recipe.objective)
        yield from super().problems()

    def prepare(self) -> None:
        """Find the classes and the vocabulary of the training texts."""
        self.classes = classes_of(self.texts.learned(), self.recipe.data, self.recipe.objective)
        self.tokenizer = self.texts.tokenizer()

    def ready(self, say: Say) -> None:
        """Report the texts of every split, and skipped entries."""
        for line in [*self.summary(), *self.texts.told(self.answers)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `tokenizer.json` and `classes.json`."""
        replace_file(run / "tokenizer.json", self.tokenizer.to_bytes())
        replace_file(run / "classes.json", written_classes(self.classes))

    def open(self, run: Path) -> None:
        """Read the files of `save`."""
        self.tokenizer, self.classes = Tokenizer.load(run / "tokenizer.json"), read_classes(run / "classes.json")

    @cached_property
    def texts(self) -> LabelledTexts:
        """The files of the recipe."""
        return LabelledTexts(self.recipe.data, self.recipe.seed)

    @property
    def examples(self) -> LabelledTexts:
        """The same, as what all jobs with classes have."""
        return self.texts

    def model(self) -> SequenceClassifier:
        """A new model: embedding, cells, read-out, head."""
        ways = (self.recipe.objective.calibrated, self.recipe.data.paired, self.texts.ends(self.tokenizer))
        return SequenceClassifier(self.tokenizer.vocab_size, self.answers, self.recipe.model, self.code.find, *ways)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[LabelledBatch]:
        """Batches of texts of near-equal length."""
        coded = self.texts.coded(split, self.tokenizer, self.answers, learn=purpose == "learn")
        if purpose != "learn":
            return to_score(*coded)
        model.count(to_score(*coded))
        return to_learn(*coded, self.recipe.train.batch_size, self.recipe.seed)

    def objective(self, model: Any, batch: LabelledBatch, state: State) -> Iterator[Loss]:
        """−log p(class), with the recipe's class weights."""
        weights, pieces = self.weights if model.training else None, self.recipe.objective.bptt
        return piece_losses(model, batch, weights, pieces) if pieces else class_losses(model, batch, weights)

    def digest(self, split: str) -> str:
        """A digest of texts and classes."""
        return digest(self.texts.learned(split))

    def summary(self) -> list[str]:
        """Lines on texts, classes and vocabulary."""
        return self.texts.summary(self.classes, self.tokenizer)

    def asked_lines(self, verb: str) -> str:
        """A text or a pair of texts."""
        return "Two texts per line, with a tab between them." if self.recipe.data.paired else super().asked_lines(verb)

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """label<TAB>probability of each line; the record has all probabilities; `explain` marks the deciding words."""
        answer = class_explanations if asked.explain else class_predictions
        return by_block(lines, lambda block: answer(model, self.tokenizer, self.texts, block))

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """The user's text, or a held-out text, as the cells read it."""
        return text_passage(model, self.tokenizer, self.texts.passage(text, characters), UNITS[self.recipe.data.unit])

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Baselines without word order or with a window of words, on the same texts."""
        return self.texts.rivals(split, self.answers, quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Confusion, reliability, and relevance of words."""
        split = self.splits()[-1]
        yield from figure_pictures(model, measured_classes(model, self.batches(split, model, "score")), out)
        yield from word_pictures(model, self.texts.shown(split, text, self.tokenizer), out)

    def embedded(self, model: Any) -> tuple[Tensor, Sequence[str]]:
        """The embedding, with the text of each token."""
        return model.embedding.weight, self.tokenizer.symbols

    def exported(self, model: Any) -> Exported:
        """Tokens of texts to log p of each answer."""
        return classifier_forms(model)

    def stand_in(self, runtime: Runtime) -> SequenceClassifier:
        """The same in another runtime."""
        ends = self.texts.ends(self.tokenizer) if self.recipe.model.reader == "hierarchical" else None
        separator = self.tokenizer.vocab_size if self.recipe.data.paired else None
        return ClassifierStandIn(self.answers, runtime, ends, separator)
