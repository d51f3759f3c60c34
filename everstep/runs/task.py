"""A job: what its data is, what its model is, what is minimised, what is reported, and what its users can ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from everstep.data.batches import Batch, Batches
from everstep.decode.decoder import Decoder
from everstep.learn.listed import as_batches
from everstep.learn.objective import Loss
from everstep.look.passage import Passage
from everstep.networks.scoring import Score as Score
from everstep.runs.recipe import Recipe
from everstep.runs.user_code import UserCode
from everstep.sections import Section
from everstep.state import State

Say = Callable[[str], None]
Purpose = Literal["learn", "validate", "score"]
Progress = Callable[[int, int], None]
R = TypeVar("R", bound=Recipe)


class Task(ABC, Generic[R]):
    """One job. A subclass in one file is all that a job needs: run folders, resume, checkpoints, the command line,
    cards and pictures know no job.

    A task holds settings and what is learned of the data beside weights (vocabularies, scalings); never weights, and
    never a run folder. `prepare` or `open` is called once, before anything else but `problems`.

    Attributes:
        Recipe: its settings: sections `data`, `model`, `objective`, `decode`; `train` is the same for every job.
        extras: modules of optional packages that it needs, looked for before any work.
        remedy: how to install them: "pip install 'everstep[translation]'".
        files: the names of the files that `save` writes; their digests are kept, and looked at before `open`.
        unit: what `Batch.count` counts: "token", "sentence".
        loss_unit: what `Loss.reported` is in, per `unit`: "nats".
        scores: the measures of which the highest is best; of all others it is the lowest.
        meaning: what each measure is, in words, for `everstep eval`.
        shown: the measures that the end of a training prints.
        understands: the fields of `Asked` that its `predict` understands.
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

    def __init__(self, recipe: R, code: UserCode | None = None):
        self.recipe = recipe
        self.code = code or UserCode()

    def problems(self) -> Iterator[str]:
        """What is wrong with the recipe that its types do not show, with the key first; asked before any work.

        By default what its sections find, such as a cell that cannot be made.
        """
        for _, value in self.recipe:
            if isinstance(value, Section):
                yield from value.problems(self.code.find)

    def prepare(self) -> None:
        """Read the data and learn what is needed of it; vocabularies and scalings of the split "train" alone.

        Raises:
            DataError: data that cannot be used.
        """

    def ready(self, say: Say) -> None:
        """Say what a training begins with, after `prepare`, or after `open` where that is another run's.

        Raises:
            DataError: data that cannot be used with what was learned of it.
        """
        for line in self.summary():
            say(line)

    def save(self, run: Path) -> None:
        """Write what `prepare` learned into the run folder: the `files`."""

    def open(self, run: Path) -> None:
        """Read what `save` wrote, which is as it was written, and no data.

        Raises:
            RunError, DataError: a file is missing or damaged.
        """

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The parts of the data, "train" first; "valid" is validated on while training."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, from torch's random generator."""

    @abstractmethod
    def batches(self, split: str, model: nn.Module, purpose: Purpose) -> Batches[Any] | Sequence[Any]:
        """The batches of a split: to learn from, for a look at the validation, or for a score of every target.

        They come by number (`Batches`), or as a list that is the same in every epoch.

        Raises:
            DataError: there is no such split, or it cannot be used.
        """

    @abstractmethod
    def objective(self, model: Any, batch: Any, state: State) -> Iterator[Loss]:
        """The losses of a batch, one for each piece that is backpropagated by itself; see `everstep.learn.Loss`."""

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """The measures of a split, of which each target counts once. By default the mean loss."""
        loss, count = self.mean_loss(model, self.batches(split, model, "score"), progress)
        return {f"{self.unit}s": count, "loss": loss}

    def validate(self, model: Any) -> float | dict[str, float]:
        """What a validation says: a number, of which lower is better, or measures, of which "loss" is one.

        By default the mean loss of the split "valid". `train.select` says which measure decides.
        """
        return self.mean_loss(model, self.batches("valid", model, "validate"))[0]

    @torch.no_grad()
    def mean_loss(
        self, model: Any, given: Batches[Any] | Sequence[Any], progress: Progress = lambda done, total: None
    ) -> tuple[float, int]:
        """The mean of `Loss.reported` over all targets, and their number, in one pass with the state carried along."""
        model.eval()
        batches = as_batches(given)
        total, count, state = 0.0, 0, None
        device = next(model.parameters()).device
        for index in range(len(batches)):
            batch: Batch = batches.batch(0, index).to(device)
            for loss in self.objective(model, batch, state):
                total += float(loss.reported.cpu().double().sum())  # here, since some devices have no float64
                state = loss.state
            count += batch.count
            state = state if batches.carries_state else None
            progress(index + 1, len(batches))
        return total / max(count, 1), count

    def digest(self, split: str) -> str | None:
        """What a split is recognised by, such as a SHA-256 of its data; None: by nothing."""
        del split
        return None

    def identity(self) -> dict[str, Any]:
        """JSON that must be equal when a run goes on: the digest of each split."""
        found = {split: self.digest(split) for split in self.splits()}
        return {split: value for split, value in found.items() if value is not None}

    def summary(self) -> list[str]:
        """Lines for the run's card: the data, and what was learned of it."""
        return []

    @classmethod
    def upgraded(cls, raw: dict[str, Any], version: int) -> dict[str, Any]:
        """The recipe of a run of an older format, as YAML gave it, with the keys of today."""
        del version
        return raw


class Prediction(NamedTuple):
    """One answer of `everstep predict`: the line, or lines, that are printed, and all that is known of it, as JSON.

    What is given back without an answer has an empty record.
    """

    text: str
    record: dict[str, Any]


class Asked(NamedTuple):
    """What is asked for beside an answer; a job says in `understands` which of these it understands.

    Attributes:
        probabilities: p of what is predicted beside it, and of all else in the record.
        n_best: that many answers, the likeliest first.
        format: of the lines, where it is not that of the training data.
        explain: what each part of a line has to do with the answer.
    """

    probabilities: bool = False
    n_best: int = 1
    format: str | None = None
    explain: bool = False


NOTHING_ELSE = Asked()


@runtime_checkable
class Predicts(Protocol):
    """A job that answers lines with lines: labels, tags, translations, forecasts."""

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """One prediction a line, or some lines, in order, whatever the batch; it reads ahead no more than a block.

        A job that `understands` some takes an `Asked` as a further argument.
        """


@runtime_checkable
class Scores(Protocol):
    """A job that can say how likely a line is."""

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line in nats; `first_line` is the number of the first, for errors."""


class Speller(Protocol):
    """Tokens to text, some at a time."""

    def spell(self, ids: Sequence[int]) -> str:
        """The text that the next tokens complete; it may be empty."""

    def end(self) -> str:
        """The text that is left."""


@runtime_checkable
class Generates(Protocol):
    """A job that can be decoded from."""

    def decoder(self, model: Any, given: str) -> Decoder:
        """The model ready to go on after the text `given`."""

    def speller(self) -> Speller:
        """Turns tokens into text, some at a time."""


@runtime_checkable
class Draws(Protocol):
    """A job whose model `everstep look` can draw over a passage."""

    def passage(self, model: Any, text: str | None, characters: int) -> Passage:
        """About so many characters of `text`, or of the held-out data where it is None, as the model reads them."""


@runtime_checkable
class Pictures(Protocol):
    """A job that has pictures of its own, beside those of its passages."""

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Draw into the folder `out`, of a text of the user's if there is one; each with a sentence that says what to
        see."""


@runtime_checkable
class HasRivals(Protocol):
    """A job that is held against simpler models."""

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Of each rival, fitted on "train" alone, its name and measures on a split; with `quick`, within seconds.

        Raises:
            ConfigError: an optional package is missing.
        """


ABILITIES: dict[str, Any] = {
    "predict": Predicts,
    "score": Scores,
    "generate": Generates,
    "look": Draws | Pictures,
    "eval --rivals": HasRivals,
}
"""What a run can be asked beside `eval`, by the verb that asks."""


def trusting(task: Task[Any]) -> str:
    """What a command of a run of this job needs beside the folder: consent where it holds code of the user's."""
    return " --trust-code" if task.code.digests else ""


def abilities(task: Task[Any]) -> list[str]:
    """The verbs that a run of this job understands."""
    return ["eval", *(verb for verb, protocol in ABILITIES.items() if isinstance(task, protocol))]
