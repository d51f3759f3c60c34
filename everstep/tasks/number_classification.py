"""Classification of sequences of numbers: sensors, pen strokes, clips of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.errors import ConfigError, DataError
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.class_pictures import figure_pictures
from everstep.networks.classifying import class_losses, measured_classes, to_learn, to_score
from everstep.networks.document_pieces import piece_losses
from everstep.networks.number_classifier import NumberClassifier, NumberClassifierSection
from everstep.networks.number_forms import NumberStandIn, number_forms
from everstep.networks.number_pictures import number_passage, shown_numbers
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.stand_ins import Runtime
from everstep.rivals.number_classes import NumberSet, number_rivals
from everstep.runs.asked_numbers import AskedSequence, asked_form, asked_numbers
from everstep.runs.class_task import ClassRecipe, ClassTask
from everstep.runs.labelled_answers import classes_of, kind_disagreements, needs_whole, read_classes, written_classes
from everstep.runs.number_data import LabelledSequences
from everstep.runs.number_predictions import number_predictions
from everstep.runs.number_section import NumberSection
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Purpose, Say
from everstep.state import State
from everstep.storage.files import replace_file

SHOWN = 4  # sequences that are drawn


class NumberClassificationRecipe(ClassRecipe):
    """The recipe: labelled sequences of numbers, a classifier, −log p of the class."""

    data: NumberSection = NumberSection()
    model: NumberClassifierSection = NumberClassifierSection()


class NumberClassification(ClassTask[NumberClassificationRecipe]):
    """Predicts the class of a sequence of numbers, or of a clip."""

    Recipe = NumberClassificationRecipe
    extras = ("polars",)
    remedy = "pip install 'everstep[forecast]'"
    files = ("numbers.json", "classes.json")
    unit = "sequence"
    understands = frozenset({"explain"})
    reads = {"predict": "table.csv"}
    scaling: NumberScaling

    def problems(self) -> Iterator[str]:
        """A cell that cannot be created, and incompatible sections."""
        yield from kind_disagreements(self.recipe.data, self.recipe.objective)
        if self.recipe.objective.bptt is not None:
            yield from needs_whole(self.recipe.model)
        yield from super().problems()

    def prepare(self) -> None:
        """Find the classes, and fit the scaling to the training sequences."""
        self.classes = classes_of(self.examples.learned(), self.recipe.data, self.recipe.objective)
        self.scaling = self.examples.scaling()

    def ready(self, say: Say) -> None:
        """Report the sequences of every split, and skipped entries."""
        for line in [*self.summary(), *self.examples.told(self.answers, self.scaling)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `numbers.json` and `classes.json`."""
        replace_file(run / "numbers.json", self.scaling.to_bytes())
        replace_file(run / "classes.json", written_classes(self.classes))

    def open(self, run: Path) -> None:
        """Read the files of `save`."""
        self.scaling, self.classes = NumberScaling.load(run / "numbers.json"), read_classes(run / "classes.json")

    @cached_property
    def examples(self) -> LabelledSequences:
        """The files of the recipe."""
        return LabelledSequences(self.recipe.data, self.recipe.seed)

    def model(self) -> NumberClassifier:
        """A new model: a convolutional network for frames, cells, read-out, head."""
        calibrated = self.recipe.objective.calibrated
        return NumberClassifier(self.scaling, self.answers, self.recipe.model, self.code.find, calibrated)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Batches[LabelledBatch]:
        """Batches of sequences of near-equal length."""
        learn, recipe = purpose == "learn", self.recipe
        coded = self.examples.coded(split, self.scaling, self.answers, learn=learn)
        return to_learn(*coded, recipe.train.batch_size, recipe.seed) if learn else to_score(*coded)

    def objective(self, model: Any, batch: LabelledBatch, state: State) -> Iterator[Loss]:
        """−log p(class), with the recipe's class weights."""
        weights, pieces = self.weights if model.training else None, self.recipe.objective.bptt
        return piece_losses(model, batch, weights, pieces) if pieces else class_losses(model, batch, weights)

    def digest(self, split: str) -> str:
        """A digest of numbers and classes."""
        return self.examples.digest(split)

    def summary(self) -> list[str]:
        """Lines on sequences, classes and steps."""
        return self.examples.summary(self.classes, self.scaling)

    def asked_lines(self, verb: str) -> str:
        """Numbers."""
        return asked_form(self.scaling)

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """label<TAB>probability of each sequence; the record has all probabilities; `explain` names what decides."""
        return number_predictions(model, self.scaling, self._asked(lines), asked.explain)

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """The first sequence of the user's lines, or a held-out one, as the cells read it."""
        (_, steps), *_ = self._shown(text)
        return number_passage(model, self.scaling.scaled(steps[:characters]))

    exported = staticmethod(number_forms)

    def stand_in(self, runtime: Runtime) -> NumberClassifier:
        """The same in another runtime."""
        return NumberStandIn(self.answers, runtime)

    def _asked(self, lines: Iterable[str]) -> Iterator[AskedSequence]:
        """The sequences of lines, as far as they are read."""
        data = self.recipe.data
        for one in asked_numbers(lines, self.scaling, data.columns, data.padded):
            yield one._replace(steps=one.steps[: data.max_length])

    def _shown(self, text: str | None) -> list[tuple[str, Any]]:
        if text is None:
            return [(one.label, one.steps) for one in self.examples.shown(self.splits()[-1], SHOWN)]
        asked = (one for one in self._asked(text.splitlines()) if len(one.steps))
        found = [("", one.steps) for one in islice(asked, SHOWN)]
        if not found:
            raise DataError("the text holds no sequence; give numbers, a sequence a line")
        return found

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Baselines on summaries, on resampled sequences and by nearest neighbours, on the same sequences."""
        if self.recipe.data.label_separator is not None:
            raise ConfigError("rivals: expected one class a sequence; there are several (data.label_separator)")
        train, test = (NumberSet(*self.examples.coded(name, self.scaling, self.answers)) for name in ("train", split))
        return number_rivals(train, test, len(self.answers.names), quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Confusion, reliability, what is said after each step, and which numbers decide."""
        measured = measured_classes(model, self.batches(self.splits()[-1], model, "score"))
        yield from figure_pictures(model, measured, out, self.unit)
        yield from shown_numbers(model, self.scaling, self._shown(text), out)
