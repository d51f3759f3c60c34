"""The interface of a job: data, model, objective and measures. What its users can ask is in `capabilities.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from everstep.data.batches import Batch, Batches
from everstep.learn.listed import as_batches
from everstep.learn.objective import Loss
from everstep.parameters import device_of
from everstep.runs.recipe import Recipe
from everstep.runs.user_code import UserCode
from everstep.sections import Section
from everstep.state import State

Say = Callable[[str], None]
Purpose = Literal["learn", "validate", "score"]
Progress = Callable[[int, int], None]
R = TypeVar("R", bound=Recipe)


class Task(ABC, Generic[R]):
    """The base class of jobs. A job is one subclass in one file.

    Run folders, resuming, checkpoints, the command line, cards and pictures work for any job. A task holds settings and
    what is fitted to the data besides weights (vocabularies, scalings), but no weights and no run folder. `prepare` or
    `open` is called once, before any other method except `problems`. A subclass has to define `splits`, `model`,
    `batches` and `objective`. What its users can ask is further methods, those of the protocols in
    `everstep.runs.capabilities`: a class that has the methods of a protocol has the capability.

    Args:
        recipe: the settings, an instance of `Recipe`.
        code: the Python files that the recipe names; None: none.

    Attributes:
        recipe: the settings.
        code: the user's cells and functions that the recipe names.
        Recipe: the class of the settings. It may add sections `data`, `model`, `objective` and `decode`; `train` is
            common to all jobs.
        extras: optional modules that it needs, checked before any work.
        remedy: how to install them: "pip install 'everstep[translation]'".
        files: the names of the files that `save` writes; their digests are stored, and verified before `open`.
        unit: what `Batch.count` counts: "token", "sentence".
        loss_unit: the unit of `Loss.reported` per `unit`; "nats" may be shown as bits, any other unit is not converted.
        scores: the measures for which higher is better; for all others lower is better.
        meaning: a description of each measure, for `everstep eval`.
        shown: the measures printed at the end of a training.
        understands: the fields of `Asked` that its `predict` supports.
        reads: what examples of the verbs "predict" and "score" call their input, if it is more than lines of text.
        names_files: whether lines to predict from and to score name files. A server opens none for its clients: there
            a line begins with what the file holds, as data:audio/wav;base64,…
        typed: whether a generated text is that of its tokens one behind another, so that people can type it token by
            token, and that bits are counted by its characters.
        no_export: why it has no export, if it has none.
        optimised: whether `fit` trains the model. If not, `prepare` fits the whole model, such as one of counts, and a
            training writes the run without a step.
    """

    Recipe: ClassVar[type[Any]]
    extras: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "token"
    loss_unit: ClassVar[str] = "nats"
    scores: ClassVar[frozenset[str]] = frozenset()
    meaning: ClassVar[dict[str, str]] = {}
    shown: ClassVar[tuple[str, ...]] = ()
    understands: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[Mapping[str, str]] = {}
    names_files: ClassVar[bool] = False
    typed: ClassVar[bool] = True
    no_export: ClassVar[str] = ""
    optimised: ClassVar[bool] = True

    @classmethod
    def for_data(cls, data: Mapping[str, Any]) -> type[Task[Any]]:
        """The class that handles the raw `data` section of a recipe: by default this one.

        A job with several kinds of data chooses among its classes here, before the keys are validated.

        Args:
            data: the `data` section as written, not yet validated.
        """
        del data
        return cls

    def __init__(self, recipe: R, code: UserCode | None = None):
        self.recipe = recipe
        self.code = code or UserCode()

    def problems(self) -> Iterator[str]:
        """Problems of the recipe that types cannot express, each beginning with the key; called before any work.

        By default the problems of its sections, such as a cell that cannot be created.
        """
        for _, value in self.recipe:
            if isinstance(value, Section):
                yield from value.problems(self.code.find)

    def prepare(self) -> None:
        """Read the data, and fit vocabularies and scalings to the split "train".

        Raises:
            DataError: the data cannot be used.
        """

    def ready(self, say: Say) -> None:
        """Check the data of a training and describe it to the user; called after `prepare`, or after `open` of another
        run.

        Args:
            say: receives each line for the user.

        Raises:
            DataError: the data does not match the vocabularies and scalings.
        """
        for line in self.summary():
            say(line)

    def save(self, run: Path) -> None:
        """Write the results of `prepare` into the run folder, as `files`."""

    def open(self, run: Path) -> None:
        """Read the `files`, whose digests have been verified; reads no data.

        Raises:
            RunError, DataError: a file is missing or damaged.
        """

    def asked_lines(self, verb: str) -> str:
        """What the lines given to `predict` or `score` hold, in a sentence for people."""
        return "One text per line."

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, "train" first; "valid" is used for validation during training."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, initialised with torch's random generator."""

    @abstractmethod
    def batches(self, split: str, model: nn.Module, purpose: Purpose) -> Batches[Any] | Sequence[Any]:
        """The batches of a split. A batch is anything with `count`, its number of targets, and `to(device)`.

        Args:
            split: one of `splits()`.
            model: the model, for a job whose batches depend on it.
            purpose: "learn": training; "validate": a quick validation; "score": every target exactly once.

        Returns:
            `Batches`, or a list that is the same in every epoch.

        Raises:
            DataError: there is no such split, or it cannot be used.
        """

    @abstractmethod
    def objective(self, model: Any, batch: Any, state: State) -> Iterator[Loss]:
        """The losses of a batch, one for each piece that is backpropagated separately; see `everstep.learn.Loss`.

        Args:
            model: the model of `model`, in training or eval mode.
            batch: a batch of `batches`, on the device of the model.
            state: the state after the last batch if the batches carry state, else None.
        """

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """The measures on a split, in which each target counts once; by default the mean loss.

        `progress` receives the number of finished batches and the number of all.
        """
        loss, count = self.mean_loss(model, self.batches(split, model, "score"), progress)
        return {f"{self.unit}s": count, "loss": loss}

    def loss_on(self, model: Any, split: str) -> float:
        """The loss of `metrics`, for which a job may do less."""
        return float(self.metrics(model, split)["loss"])

    def validate(self, model: Any) -> float | dict[str, float]:
        """The validation result: a loss, lower is better, or a dict of measures that includes "loss".

        By default the mean loss on the split "valid". `train.select` names the measure that selects the best weights.
        """
        return self.mean_loss(model, self.batches("valid", model, "validate"))[0]

    @torch.no_grad()
    def mean_loss(
        self, model: Any, given: Batches[Any] | Sequence[Any], progress: Progress = lambda done, total: None
    ) -> tuple[float, int]:
        """The mean of `Loss.reported` over all targets, and their number, in one pass that carries the state."""
        model.eval()
        batches = as_batches(given)
        total, count, state = 0.0, 0, None
        device = device_of(model)
        for index in range(len(batches)):
            batch: Batch = batches.batch(0, index).to(device)
            for loss in self.objective(model, batch, state):
                total += float(loss.reported.cpu().double().sum())  # on the CPU, since some devices have no float64
                state = loss.state
            count += batch.count
            state = state if batches.carries_state else None
            progress(index + 1, len(batches))
        return total / max(count, 1), count

    def digest(self, split: str) -> str | None:
        """An identifier of the content of a split, such as a SHA-256; None if there is none."""
        del split
        return None

    def identity(self) -> dict[str, Any]:
        """What must be equal when a run resumes, as JSON: by default the digest of each split that has one."""
        found = {split: self.digest(split) for split in self.splits()}
        return {split: value for split, value in found.items() if value is not None}

    def numbered(self) -> dict[str, Any]:
        """What weights know by its number alone, such as languages, as JSON by a name for the user.

        It must be equal in a run to start from, beside the shape of its model.
        """
        return {}

    def summary(self) -> list[str]:
        """Lines for the run's card: the data, vocabularies and scalings."""
        return []

    @classmethod
    def upgraded(cls, raw: dict[str, Any], version: int) -> dict[str, Any]:
        """Convert the raw recipe of a run of an older format to the current keys."""
        del version
        return raw


class Prediction(NamedTuple):
    """One prediction of `everstep predict`: the printed line or lines, and the full record as JSON.

    The record is empty for input that is passed through without a prediction.
    """

    text: str
    record: dict[str, Any]


class Asked(NamedTuple):
    """Options of a prediction; a job lists in `understands` those it supports.

    Attributes:
        probabilities: whether to print the probability of the prediction, and record all probabilities.
        n_best: number of predictions, most probable first.
        format: the format of the lines, if it is not that of the training data.
        explain: whether to add the relevance of each part of a line.
        anomalies: whether to score how unlikely each value is, instead of forecasting.
        paths: number of sample paths to give, instead of quantiles; 0: none.
    """

    probabilities: bool = False
    n_best: int = 1
    format: str | None = None
    explain: bool = False
    anomalies: bool = False
    paths: int = 0


NOTHING_ELSE = Asked()


def trusting(task: Task[Any]) -> str:
    """The option that commands on a run of this job need: consent, if it holds user code; else ""."""
    return " --trust-code" if task.code.digests else ""
