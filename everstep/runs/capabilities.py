"""The capabilities of jobs: what users can ask of a run, as small protocols. A job has those whose methods it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from everstep.decode.decoder import Decoder
from everstep.look.passage import Passage
from everstep.networks.forms import Exported
from everstep.networks.scoring import Score
from everstep.networks.stand_ins import Runtime
from everstep.runs.task import Prediction, Progress, Task

Adaptation = Literal["cache", "dynamic"]


@runtime_checkable
class Embeds(Protocol):
    """A job with an embedding that pretrained word vectors (`model.vectors`) can initialise."""

    def embedded(self, model: Any) -> tuple[torch.Tensor, Sequence[str]]:
        """The embedding (V or more rows, size), which is filled in place, and the word of each of its first V rows."""


@runtime_checkable
class Predicts(Protocol):
    """A job that predicts from lines of text: labels, tags, translations, forecasts."""

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """One prediction per line or group of lines, in order, independent of batching.

        Lines are read lazily, at most a block ahead, unless a prediction needs all of them, as with a table of series.
        If the job `understands` any options, an `Asked` is a further argument.

        Raises:
            DataError: a line cannot be read.
        """


@runtime_checkable
class Ensembles(Protocol):
    """A job in which several models with the same vocabularies can predict as an ensemble."""

    def together(self, models: Sequence[Any]) -> Any:
        """A model whose probabilities are the mean of those of `models`; every method of the job accepts it."""


@runtime_checkable
class Streams(Protocol):
    """A job that processes observations one at a time."""

    def stream(self, model: Any) -> Any:
        """An object with `start`, which returns a state, and a call (observation, state) → (prediction, state)."""


@runtime_checkable
class Scores(Protocol):
    """A job that computes the probability of a line."""

    def score(self, model: Any, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line in nats; `first_line` is the number of the first line, for errors.

        Raises:
            DataError: a line cannot be read.
        """


@runtime_checkable
class ScoresInOrder(Protocol):
    """A job that may also read lines as one text."""

    def score_in_order(self, model: Any, lines: Sequence[str]) -> list[Score]:
        """log p of each line in nats, after all before it where the recipe's text is one stream, else by itself.

        Raises:
            DataError: a line cannot be read.
        """


@runtime_checkable
class HoldsLines(Protocol):
    """A job that scores lines, but whose files need not hold them, such as MIDI files."""

    def lines(self, split: str) -> list[str]:
        """What a split holds, a line an example, as `score` reads them."""

    def file_lines(self, path: Path) -> list[str]:
        """What a file of the user holds, likewise.

        Raises:
            DataError: the file cannot be read.
        """


class Speller(Protocol):
    """Incremental conversion of tokens, or rows of numbers, to text."""

    def spell(self, ids: Sequence[Any]) -> str:
        """The text that the next tokens or rows complete; may be empty."""

    def end(self) -> str:
        """The remaining text."""


@runtime_checkable
class Generates(Protocol):
    """A job that generates sequences."""

    def decoder(self, model: Any, given: str) -> Decoder:
        """The model, ready to continue the text `given`.

        Raises:
            DataError: the text has a symbol that the vocabulary lacks.
        """

    def speller(self) -> Speller:
        """An incremental converter from tokens to text."""


@runtime_checkable
class Renders(Protocol):
    """A job whose generated text can be a file of another kind, such as MIDI.

    Attributes:
        renders: the endings of the files: (".mid",).
    """

    renders: ClassVar[tuple[str, ...]]

    def rendered(self, text: str, suffix: str) -> bytes:
        """The content of the file for a generated text; `suffix` is one of `renders`.

        Raises:
            DataError: the text has none, such as one that was edited.
            ConfigError: an optional package is missing.
        """


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
        """The name ("name") and the measures of each baseline on a split, fitted on "train" alone.

        With `quick`, only those that take a few seconds, if any.

        Raises:
            ConfigError: an optional package is missing.
        """


@runtime_checkable
class Adapts(Protocol):
    """A job whose model can adapt to a text while it is scored on it."""

    def adapted(
        self, model: Any, split: str, how: Adaptation, progress: Progress = lambda done, total: None
    ) -> dict[str, Any]:
        """The measures on a split with a continuous cache ("cache") or dynamic evaluation ("dynamic").

        The measure `adapted` describes the settings. The weights of `model` are unchanged afterwards.

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
    """A job whose model can be exported to another runtime, and used there."""

    def exported(self, model: Any) -> Exported:
        """The model as functions of named tensors, of one step and of sequences; or the reason why there is none."""

    def stand_in(self, runtime: Runtime) -> nn.Module:
        """A model without weights that computes in the runtime; the methods of the job accept it like the model."""


@runtime_checkable
class Writes(Protocol):
    """A job whose model can be written as one file in formats of other programs, such as "arpa".

    Attributes:
        formats: the names of the formats, as in `everstep export --to`.
    """

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
"""The protocol of each ability besides `eval`, by the verb that needs it."""


def abilities(task: Task[Any]) -> list[str]:
    """The verbs that a run of this job supports."""
    return ["eval", *(verb for verb, protocol in ABILITIES.items() if isinstance(task, protocol))]
