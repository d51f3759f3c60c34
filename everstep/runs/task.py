"""The interface of a job: data, model, objective, measures, and what a trained run can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from everstep.data.batches import Batch, Batches
from everstep.decode.decoder import Decoder
from everstep.learn.listed import as_batches
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.forms import Exported
from everstep.networks.scoring import Score as Score
from everstep.networks.stand_ins import Runtime
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
    `open` is called once, before any other method except `problems`.

    Attributes:
        Recipe: the class of its settings, with sections `data`, `model`, `objective`, `decode`; `train` is common to
            all jobs.
        extras: optional modules that it needs, checked before any work.
        remedy: how to install them: "pip install 'everstep[translation]'".
        files: the names of the files that `save` writes; their digests are stored, and verified before `open`.
        unit: what `Batch.count` counts: "token", "sentence".
        loss_unit: the unit of `Loss.reported` per `unit`: "nats".
        scores: the measures for which higher is better; for all others lower is better.
        meaning: a description of each measure, for `everstep eval`.
        shown: the measures printed at the end of a training.
        understands: the fields of `Asked` that its `predict` supports.
        optimised: whether `fit` trains the model. If not, `prepare` fits all of it, such as a model of counts, and a
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
    optimised: ClassVar[bool] = True

    @classmethod
    def for_data(cls, data: Mapping[str, Any]) -> type[Task[Any]]:
        """The class of the job for the raw `data` section of a recipe: by default this one.

        A job of several kinds of data chooses here, before the keys are read.
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
        """Describe the data of a training to the user; called after `prepare`, or after `open` of another run.

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

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, "train" first; "valid" is used for validation during training."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, initialised with torch's random generator."""

    @abstractmethod
    def batches(self, split: str, model: nn.Module, purpose: Purpose) -> Batches[Any] | Sequence[Any]:
        """The batches of a split, for training, for a quick validation, or for a score of every target.

        Either `Batches`, or a list that is the same in every epoch.

        Raises:
            DataError: there is no such split, or it cannot be used.
        """

    @abstractmethod
    def objective(self, model: Any, batch: Any, state: State) -> Iterator[Loss]:
        """The losses of a batch, one for each piece that is backpropagated separately; see `everstep.learn.Loss`."""

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """The measures on a split, in which each target counts once; by default the mean loss."""
        loss, count = self.mean_loss(model, self.batches(split, model, "score"), progress)
        return {f"{self.unit}s": count, "loss": loss}

    def validate(self, model: Any) -> float | dict[str, float]:
        """The validation result: a loss, lower is better, or a dict of measures that includes "loss".

        By default the mean loss on the split "valid". `train.select` names the measure that decides.
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
        """JSON that must be equal when a run resumes: by default the digest of each split."""
        found = {split: self.digest(split) for split in self.splits()}
        return {split: value for split, value in found.items() if value is not None}

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


@runtime_checkable
class Embeds(Protocol):
    """A job with an embedding that `model.vectors` can begin."""

    def embedded(self, model: Any) -> tuple[torch.Tensor, Sequence[str]]:
        """The embedding (V or more rows, size), and the word of each of its first V rows."""


@runtime_checkable
class Predicts(Protocol):
    """A job that predicts from lines of text: labels, tags, translations, forecasts."""

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """One prediction per line or group of lines, in order, independent of batching; reads ahead at most a block.

        If the job `understands` any options, an `Asked` is a further argument.
        """


@runtime_checkable
class Ensembles(Protocol):
    """A job in which several models of the same vocabularies can predict together."""

    def together(self, models: Sequence[Any]) -> Any:
        """A model whose probabilities are the mean of those of the models; it predicts, scores and is measured."""


@runtime_checkable
class Streams(Protocol):
    """A job that takes observations one by one."""

    def stream(self, model: Any) -> Any:
        """An object with `start`, which returns a state, and a call (observation, state) → (answer, state)."""


@runtime_checkable
class Scores(Protocol):
    """A job that gives the probability of a line."""

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line in nats; `first_line` is the number of the first line, for errors."""


class Speller(Protocol):
    """Incremental conversion of tokens to text."""

    def spell(self, ids: Sequence[int]) -> str:
        """The text that the next tokens complete; may be empty."""

    def end(self) -> str:
        """The remaining text."""


@runtime_checkable
class Generates(Protocol):
    """A job that generates sequences."""

    def decoder(self, model: Any, given: str) -> Decoder:
        """The model, ready to continue the text `given`."""

    def speller(self) -> Speller:
        """An incremental converter from tokens to text."""


@runtime_checkable
class Draws(Protocol):
    """A job whose model `everstep look` can draw on a passage."""

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """About `characters` characters of `text`, or of the held-out data if None, as the model reads them."""


@runtime_checkable
class Pictures(Protocol):
    """A job with pictures besides those of passages."""

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Draw into the folder `out`, on the user's text if given; yields the path and the caption of each picture."""


@runtime_checkable
class HasRivals(Protocol):
    """A job with baselines."""

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Name and measures on a split of each baseline, fitted on "train" alone; with `quick`, those of
        a few seconds, if any.

        Raises:
            ConfigError: an optional package is missing.
        """


Adaptation = Literal["cache", "dynamic"]


@runtime_checkable
class Adapts(Protocol):
    """A job whose model can adapt to a text while it is scored on it."""

    def adapted(
        self, model: Any, split: str, how: Adaptation, progress: Progress = lambda done, total: None
    ) -> dict[str, Any]:
        """The measures on a split by a continuous cache or by dynamic evaluation; `adapted` says with which settings.

        Raises:
            RunError: the text is not read in order, or there is none to choose the settings on.
        """


@runtime_checkable
class Backtests(Protocol):
    """A job that forecasts from many origins in turn."""

    def backtest(self, model: Any, split: str, number: int, step: int | None, quick: bool) -> dict[str, Any]:
        """JSON with the `split`, the `step`, the `origins` and the `models`: the measures of each at each origin.

        Args:
            model: the model.
            split: the split in which the origins and their horizons lie.
            number: the number of origins, at most.
            step: steps between two origins; None: as many as fit.
            quick: leave out rivals that take longer than seconds.
        """

    def backtest_picture(self, found: dict[str, Any], path: Path) -> str:
        """Draw what `backtest` returned; returns the caption."""


@runtime_checkable
class Exports(Protocol):
    """A job whose model can be written down for another runtime, and then asked there."""

    def exported(self, model: Any) -> Exported:
        """What the model computes, as functions of named tensors; or why there is none of a step, or of sequences."""

    def stand_in(self, runtime: Runtime) -> nn.Module:
        """A model without weights that asks the runtime, and answers as the model does."""


@runtime_checkable
class Writes(Protocol):
    """A job whose model other programs read from one file."""

    formats: ClassVar[tuple[str, ...]]

    def written(self, model: Any, to: str) -> Iterator[bytes]:
        """The content of the file in one of the `formats`, in pieces."""


ABILITIES: dict[str, Any] = {
    "predict": Predicts,
    "predict --with": Ensembles,
    "score": Scores,
    "generate": Generates,
    "stream": Streams,
    "look": Draws | Pictures,
    "eval --rivals": HasRivals,
    "eval --adapt": Adapts,
    "export": Exports | Writes,
    "backtest": Backtests,
}
"""The protocols of a run's abilities besides `eval`, by verb."""


def trusting(task: Task[Any]) -> str:
    """The option that commands on a run of this job need: consent, if it holds user code; else ""."""
    return " --trust-code" if task.code.digests else ""


def abilities(task: Task[Any]) -> list[str]:
    """The verbs that a run of this job supports."""
    return ["eval", *(verb for verb, protocol in ABILITIES.items() if isinstance(task, protocol))]
