"""Runs: trained models in folders, and their methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from torch import nn

from everstep.decode import draws
from everstep.decode.section import SamplingSection
from everstep.errors import ConfigError, DataError, RunError, check_finite
from everstep.learn.denormals import flushed_denormals
from everstep.look.passage import Passage
from everstep.networks.scoring import Score
from everstep.runs.call_checks import check_room, checked_lines, seeded
from everstep.runs.capabilities import ABILITIES, Adaptation, Draws, Streams, abilities
from everstep.runs.card import in_one_line
from everstep.runs.data_frames import answered, is_frame, lines_of
from everstep.runs.drawn_text import Writing, begun_writing, spelled
from everstep.runs.folder import RECIPE
from everstep.runs.opening import CHANGED, compared, decides, digest
from everstep.runs.progress_bar import progress_bar
from everstep.runs.recipe import Recipe
from everstep.runs.recipe_files import changed, flat
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Task
from everstep.runs.text_data import absolute_path, check_files, gone
from everstep.sections.messages import sections
from everstep.state import map_state


class Run:
    """A trained model with its job and its recipe, as `everstep.train` and `everstep.load` return it.

    A method that the job does not support raises RunError, which names the verbs that it does.

    Attributes:
        path: the run folder.
        task: the job, with its vocabularies and scalings.
        model: the network, in eval mode.

    >>> import everstep as es
    >>> run = es.train("shakespeare-minute", getfixture("tmp_path") / "run", overrides=["train.max_steps=1"])
    >>> len(run.generate(prompt="To be", length=20, seed=1))
    25
    """

    def __init__(self, path: Path, task: Task[Any], model: nn.Module):
        self.path, self.task, self.model = path, task, model.eval()
        self._scores: dict[str, dict[str, Any]] = {}

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.task.recipe  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        """Job, model, training, measure and folder in one line."""
        return f"Run({in_one_line(self.path, self.task, self.model)}, {self.path})"

    @flushed_denormals()  # as at the end of training, so that the figures have the same bits
    def evaluate(
        self, split: str | None = None, *, data: Sequence[str] | None = None, adapt: Adaptation | None = None
    ) -> dict[str, Any]:
        """The measures on a split: by default "test" if the run has one, else "valid".

        Args:
            split: the name of the split.
            data: files of the same kind to use in place of the test split.
            adapt: "cache" or "dynamic": adapt to the text before each target; the measure `adapted` has the settings.

        Returns:
            task, split, data, and the measures of the job, in which each target counts once. data is "as trained",
            "changed" since the run began (said on stderr), "not recorded" by an early version, or the given files.

        Raises:
            DataError: the run has no such split, or its data is missing.
            RunError: the model outputs NaN or infinity; the job cannot adapt.
        """
        task, split = self._asked(split, data)
        if adapt is not None:
            self.able("eval --adapt")
        elif data is None and split in self._scores:
            return dict(self._scores[split])
        with progress_bar(f"scoring {split}") as progress, self._where("; to score other files: eval --data FILE"):
            if adapt is None:
                measures = task.metrics(self.model, split, progress)
            else:
                measures = task.adapted(self.model, split, adapt, progress)  # type: ignore[attr-defined]
        if isinstance(loss := measures.get("loss", measures.get("nats_per_token")), float):
            check_finite(f"the score of {split}", loss)
        state = ", ".join(map(str, data)) if data else compared(self.path, split, task.digest(split))
        if state == CHANGED:
            warn(f"warning: {split} has changed since {self.path} was begun: this is the score of other data")
        found = {"task": self.recipe.task, "split": split, "data": state, **measures}
        if data is None and adapt is None:
            self._scores[split] = found
        return dict(found)

    def decoding(self, overrides: Sequence[str]) -> Run:
        """This run with other settings of `decode`, such as "decode.beam_width=10"; its folder stays as it is.

        Raises:
            ConfigError: a key outside `decode`, an unknown key, or an invalid value.
            RunError: the job has no such settings.
        """
        for override in overrides:
            if not override.strip().startswith("decode."):
                raise ConfigError(f"after training only keys of decode can change (decode.KEY=VALUE); got {override!r}")
        if overrides and "decode" not in sections(type(self.recipe)):
            raise RunError(f"{self.path} ({self.recipe.task}) has no settings of decode; expected no {overrides[0]}")
        other = changed(self.task, overrides)
        other.open(self.path)
        found = copy(self)  # an exported run is made of another model
        found.task, found._scores = other, {}
        return found

    def beside(self, others: Sequence[Run]) -> Run:
        """An ensemble of this run and others: the mean of their probabilities, with the settings of this run.

        Raises:
            RunError: the job has no ensembles, or a run is of another job or has other vocabularies.
        """
        task = self.able("predict --with")
        for other in others:
            if problem := _another(self, other):
                raise RunError(f"{other.path} cannot predict beside {self.path}: {problem}")
        models = [self.model, *(other.model for other in others)]
        return Run(self.path, self.task, task.together(models))

    def rivals(self, split: str | None = None, *, data: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The measures of baselines fitted on the same training data; for the arguments see `evaluate`.

        Raises:
            RunError: the job has no baselines.
        """
        self.able("eval --rivals")
        task, split = self._asked(split, data)
        with self._where(". Rivals are fitted to the training data, and --data FILE gives but what they are scored on"):
            return task.rivals(split)  # type: ignore[no-any-return, attr-defined]

    def backtest(
        self,
        windows: int = 20,
        *,
        step: int | None = None,
        split: str | None = None,
        data: Sequence[str] | None = None,
        quick: bool = True,
    ) -> dict[str, Any]:
        """The measures of forecasts from many origins in turn, of this run and of its rivals.

        Args:
            windows: the number of origins, at most.
            step: steps from one origin to the next; None: as many as fit, at most the horizon.
            split, data: see `evaluate`.
            quick: leave out rivals that take longer than seconds.

        Returns:
            split, step, origins (each with its time and the measures of each model), models (means over origins).

        Raises:
            RunError: the job has no backtest.
            DataError: the run has no such split, or it is too short.
            ConfigError: `windows` or `step` is below 1.
        """
        self.able("backtest")
        if windows < 1 or (step is not None and step < 1):
            raise ConfigError(f"backtest: expected windows and step of at least 1; got {windows} and {step}")
        task, split = self._asked(split, data)
        with self._where("; to test on other files: backtest --data FILE"):
            found = task.backtest(self.model, split, windows, step, quick)  # type: ignore[attr-defined]
        return found  # type: ignore[no-any-return]

    def _asked(self, split: str | None, data: Sequence[str] | None) -> tuple[Task[Any], str]:
        """The job, on other data if given, and the name of the split."""
        if data is None:
            splits = self.task.splits()
            split = split or next((name for name in ("test", "valid") if name in splits), "train")
            if split not in splits:
                raise DataError(f"{self.path} has no {split} split; it has {', '.join(splits) or 'none (see --data)'}")
            return self.task, split
        if not hasattr(getattr(self.recipe, "data", None), "test"):
            raise RunError(f"{self.path} ({self.recipe.task}) reads no files of its own: it has no key data.test")
        paths = json.dumps([absolute_path(str(path)) for path in data], allow_nan=False)
        part = ["data.test_part=null"] if hasattr(self.recipe.data, "test_part") else []  # type: ignore[attr-defined]
        other = changed(self.task, [f"data.test={paths}", *part])
        check_files(other.recipe.data, ["test"], called="--data")
        other.open(self.path)
        return other, "test"

    def predict(
        self,
        lines: Iterable[str],
        explain: bool = False,
        *,
        probabilities: bool = False,
        n_best: int = 1,
        format: str | None = None,
        anomalies: bool = False,
        paths: int = 0,
    ) -> Iterator[Prediction]:
        """The prediction for each line, in order.

        Args:
            lines: an iterable of lines.
            explain: whether to add the relevance of each part of a line.
            probabilities: whether to add the probability of each prediction.
            n_best: number of predictions per line, most probable first.
            format: the format of the lines, if it is not that of the training data.
            anomalies: whether to score how unlikely each value is, instead of forecasting.
            paths: number of sample paths to give, instead of quantiles; 0: quantiles.

        Raises:
            RunError: the job cannot predict, or does not support an option.
            DataError: a line cannot be read; raised when its prediction is due.
            ConfigError: `n_best` is below 1.
        """
        task, asked = self.able("predict"), Asked(probabilities, n_best, format, explain, anomalies, paths)
        if n_best < 1:
            raise ConfigError(f"predict: n_best should be at least 1, but is {n_best}")
        for name, default in NOTHING_ELSE._asdict().items():
            if getattr(asked, name) != default and name not in task.understands:
                known = ", ".join(sorted(task.understands)) or "nothing beside"
                raise RunError(f"{self.path} ({self.recipe.task}) cannot predict with {name}; it understands {known}")
        checked = checked_lines("predict", lines)
        return task.predict(self.model, checked, *((asked,) if task.understands else ()))  # type: ignore[no-any-return]

    def predict_frame(self, frame: Any, **asked: Any) -> Any:
        """The predictions for the rows of a data frame of pandas or polars, as a frame of the same library.

        Args:
            frame: the columns that `predict` reads as a table.
            asked: options of `predict`.

        Raises:
            RunError, DataError: as `predict`; or the predictions are no table.
            TypeError: `frame` is no data frame.
        """
        if not is_frame(frame):
            raise TypeError(f"predict_frame: expected a DataFrame of pandas or polars, but got {type(frame).__name__}")
        records = [found.record for found in self.predict(lines_of(frame), **asked) if found.record]
        return answered(records, frame)

    def score(self, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line in nats; `first_line` is the number of the first line, for errors.

        Each line is scored independently of the others and their order.

        Raises:
            RunError: the job cannot score.
            DataError: a line cannot be read.
            TypeError: `lines` is not a list of strings.
        """
        return self.able("score").score(self.model, checked_lines("score", lines), first_line)  # type: ignore[no-any-return]

    def generate(
        self,
        prompt: str = "",
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        count: int = 1,
        stop: str = "",
        until_end: bool = False,
        unk: bool = False,
    ) -> Any:
        """The prompt continued by `length` sampled tokens: a text, or a list of `count` texts if count > 1.

        A text ends before the string `stop` and, with `until_end`, at the symbol that ends a sequence. `<unk>` is
        sampled only with `unk`. The same seed gives the same texts. For the other arguments see `everstep.sample`;
        `stream` yields the same text incrementally.

        Raises:
            RunError: the job cannot generate.
            DataError: the prompt has a symbol that the vocabulary lacks.
            ConfigError: a setting is out of range.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"generate: prompt should be a text, but is {type(prompt).__name__}")
        how = SamplingSection(prompt=prompt, length=length, temperature=temperature, top_k=top_k, top_p=top_p, unk=unk)
        pieces = self.stream(how, seed=seed, count=count, stop=stop, until_end=until_end)
        texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
        return texts[0] if count == 1 else texts

    @property
    def decode(self) -> SamplingSection:
        """The recipe's sampling settings, or the defaults if the job does not sample."""
        section = getattr(self.recipe, "decode", None)
        return section if isinstance(section, SamplingSection) else SamplingSection()

    def stream(
        self,
        how: SamplingSection | None = None,
        *,
        seed: int | None = None,
        count: int = 1,
        stop: str = "",
        until_end: bool = False,
    ) -> Any:
        """Yield the texts of `generate` incrementally: the next piece of each of `count` texts; first the prompt.

        `how` defaults to the recipe's `decode` section. A piece may be empty, because the bytes of a character are
        returned together. For a job that processes observations one at a time (`Streams`), such as forecasting, there
        are no arguments, and the result is the object that takes the observations.

        Raises:
            RunError, DataError, ConfigError: as `generate`; at the call, not at the first iteration.
        """
        if isinstance(self.task, Streams):
            if how is not None or (seed, count, stop, until_end) != (None, 1, "", False):
                raise ConfigError(f"{self.path} ({self.recipe.task}): stream takes no settings of texts")
            return self.task.stream(self.model)
        how = how or self.decode
        decoder, sampler, texts = self.writing(how, seed=seed, count=count, stop=stop, until_end=until_end)
        state = map_state(lambda leaf: leaf.expand(count, *leaf.shape[1:]), decoder.state)
        drawn = draws(decoder.step, state, decoder.prompt, how.length, sampler, count)
        return spelled(texts, decoder.prompt[decoder.begins :].tolist(), drawn)

    def writing(
        self, how: SamplingSection, *, seed: int | None = None, count: int = 1, stop: str = "", until_end: bool = False
    ) -> Writing:
        """What `stream` writes texts with; for the arguments, and what is raised, see there."""
        task = self.able("generate")
        check_room(decoder := task.decoder(self.model, how.prompt), count)
        spellers = [task.speller() for _ in range(count)]
        return begun_writing(decoder, how, seeded(seed, decoder.prompt.device), spellers, stop, until_end)

    def passage(self, text: str | None = None, characters: int = 600) -> Passage:
        """A text, or else held-out data, as the model reads it, for pictures.

        Raises:
            RunError: the job has no passages.
        """
        task = self.able("look")
        if not isinstance(task, Draws):
            raise RunError(f"{self.path} ({self.recipe.task}) shows no passages, but other pictures: everstep look")
        with self._where("; to look at a text of your own: look --text FILE"):
            return task.passage(self.model, text, characters)

    def data_gone(self) -> list[str]:
        """The data keys of the recipe whose files are missing, such as "data.train"."""
        return gone(getattr(self.recipe, "data", None))

    @contextmanager
    def _where(self, otherwise: str) -> Iterator[None]:
        """Add advice to the error if the data of a moved run cannot be read."""
        try:
            yield
        except DataError as error:
            if not (keys := self.data_gone()):
                raise
            raise DataError(
                f"{error}. The files of {', '.join(keys)} are not where they were when this run was trained: put them "
                f"back, or write where they are now into {self.path / RECIPE}{otherwise}"
            ) from None

    def able(self, verb: str) -> Any:
        """The task, if it supports the verb.

        Raises:
            RunError: it does not; the message lists the verbs it supports.
        """
        task: Any = self.task
        if not isinstance(task, ABILITIES[verb]):
            known = ", ".join(abilities(self.task))
            raise RunError(f"{self.path} ({self.recipe.task}) cannot {verb}; it can {known}")
        return task


def _another(one: Run, other: Run) -> str:
    """What makes the tokens of two runs differ; "" if nothing does."""
    if other.recipe.task != one.recipe.task:
        return f"it is of another job ({other.recipe.task}, not {one.recipe.task})"
    for name in one.task.files:
        both = [some.path / name for some in (one, other)]  # a run of an earlier version may lack one
        if all(path.exists() for path in both) and digest(both[0]) != digest(both[1]):
            return f"its {name} is another one; runs with the same data and seed share it, and so do those of --from"
    old, new = flat(one.recipe), flat(other.recipe)
    changed = [key for key in old if key.startswith("data.") and decides(key) and new.get(key) != old[key]]
    return "; ".join(f"its {key} is {new.get(key)!r}, not {old[key]!r}" for key in changed)


def warn(line: str) -> None:
    """Print a line for the user on stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
