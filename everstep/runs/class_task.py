"""What the jobs share that predict the class of a whole example."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from everstep.networks.answers import Answers
from everstep.networks.classifying import MEANING, ClassSection, measured_classes
from everstep.networks.temperature import calibrate, reported
from everstep.runs.labelled_answers import answers_of
from everstep.runs.labelled_splits import ExamplesSection, LabelledSplits
from everstep.runs.recipe import Recipe
from everstep.runs.task import Progress, Task


class ClassRecipe(Recipe):
    """Labelled examples, and −log p of the class; a job adds its model."""

    data: ExamplesSection
    objective: ClassSection = ClassSection()


R = TypeVar("R", bound=ClassRecipe)


class ClassTask(Task[R]):
    """A job with classes: its splits, answers, class weights and measures.

    Attributes:
        classes: the learned classes, in the order of the head.
    """

    scores: ClassVar[frozenset[str]] = frozenset({"accuracy", "macro_f1", "micro_f1", "quadratic_kappa"})
    shown: ClassVar[tuple[str, ...]] = ("accuracy", "micro_f1", "macro_f1", "mae", "quadratic_kappa", "loss")
    meaning: ClassVar[dict[str, str]] = MEANING
    classes: tuple[str, ...]

    @property
    @abstractmethod
    def examples(self) -> LabelledSplits:
        """The files of the recipe."""

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as the recipe names them."""
        return self.examples.splits()

    @cached_property
    def answers(self) -> Answers:
        """The possible answers for an example."""
        return answers_of(self.classes, self.recipe.data, self.recipe.objective)

    @cached_property
    def weights(self) -> Tensor | None:
        """The weight of each class in training; None if all are 1."""
        targets = self.answers.targets(self.examples.learned(), True)
        return self.recipe.objective.weights(targets, len(self.classes))

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Accuracy, macro-F1, nats, calibration, and the measures of each class."""
        return reported(model, self.batches(split, model, "score"), progress)  # type: ignore[arg-type]

    def validate(self, model: Any) -> dict[str, float]:
        """Fit the temperature, if any, to the split "valid", and return its loss, accuracy and macro-F1."""
        held_out: Any = self.batches("valid", model, "score")
        calibrate(model, held_out)
        return measured_classes(model, held_out).main
