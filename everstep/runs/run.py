"""Runs: a recipe trained into a folder, and what can be done with such a folder."""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everstep.decode import Sampler, draws
from everstep.decode.decoder import Decoder
from everstep.decode.section import SamplingSection
from everstep.errors import ConfigError, DataError, RunError, check_finite
from everstep.look.passage import Passage
from everstep.runs.card import in_one_line
from everstep.runs.drawn_text import spelled
from everstep.runs.folder import RECIPE
from everstep.runs.opening import CHANGED, compared
from everstep.runs.progress_bar import progress_bar
from everstep.runs.recipe import Recipe
from everstep.runs.recipe_files import changed
from everstep.runs.task import ABILITIES, NOTHING_ELSE, Asked, Draws, Prediction, Score, Task, abilities
from everstep.runs.text_data import absolute_path, check_files, gone
from everstep.state import leaves, map_state

DRAWN_BYTES = 4 << 30
"""Most memory for texts that are drawn side by side."""


class Run:
    """A trained model with its job and its recipe.

    Attributes:
        path: the run folder.
        task: the job, with what it learned of the data beside weights.
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
        """The recipe, resolved."""
        return self.task.recipe  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        """The job, the model, how long it trained, how well it does, and the folder, in one line."""
        return f"Run({in_one_line(self.path, self.task, self.model)}, {self.path})"

    def evaluate(self, split: str | None = None, *, data: Sequence[str] | None = None) -> dict[str, Any]:
        """The measures of a split: of "test" where the run has one, else "valid", unless another is named.

        Args:
            split: which part of the data.
            data: other files, of the kind that the run was trained on, in place of its test part.

        Returns:
            task, split, data ("as trained"; "changed" since the run began, which stderr is told, too; "not recorded" by
            an early version; or the files given), and the measures of the job, of which each target counts once.

        Raises:
            DataError: the run has no such split, or its data is gone.
            RunError: the model gives NaN or infinity.
        """
        task, split = self._asked(split, data)
        if data is None and split in self._scores:
            return dict(self._scores[split])
        with progress_bar(f"scoring {split}") as progress, self._where("; to score other files: eval --data FILE"):
            measures = task.metrics(self.model, split, progress)
        if isinstance(loss := measures.get("loss", measures.get("nats_per_token")), float):
            check_finite(f"the score of {split}", loss)
        state = ", ".join(map(str, data)) if data else compared(self.path, split, task.digest(split))
        if state == CHANGED:
            warn(f"warning: {split} has changed since {self.path} was begun: this is the score of other data")
        found = {"task": self.recipe.task, "split": split, "data": state, **measures}
        if data is None:
            self._scores[split] = found
        return dict(found)

    def rivals(self, split: str | None = None, *, data: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """What simpler models, fitted on the same training data, give on a split; see `evaluate`.

        Raises:
            RunError: a job that has no rivals.
        """
        self.able("eval --rivals")
        task, split = self._asked(split, data)
        with self._where(". Rivals are fitted to the training data, and --data FILE gives but what they are scored on"):
            return task.rivals(split)  # type: ignore[no-any-return, attr-defined]

    def _asked(self, split: str | None, data: Sequence[str] | None) -> tuple[Task[Any], str]:
        """The job, on other data if that is given, and the split that is meant."""
        if data is None:
            splits = self.task.splits()
            if split is not None and split not in splits:
                raise DataError(f"{self.path} has no {split} split; it has {', '.join(splits)}")
            return self.task, split or next((name for name in ("test", "valid") if name in splits), "train")
        if not hasattr(getattr(self.recipe, "data", None), "test"):
            raise RunError(f"{self.path} ({self.recipe.task}) reads no files of its own: it has no key data.test")
        paths = json.dumps([absolute_path(str(path)) for path in data], allow_nan=False)
        other = changed(self.task, [f"data.test={paths}"])
        check_files(other.recipe.data, ["test"])
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
    ) -> Iterator[Prediction]:
        """What the run says to each line, in order; with `explain`, why.

        Args:
            lines: a list of lines, or what gives one after another.
            explain: with what each part of a line has to do with the answer.
            probabilities: p of what is predicted beside it.
            n_best: that many answers to each, the likeliest first.
            format: of the lines, where it is not that of the training data.

        Raises:
            RunError: a job that predicts nothing, or not what is asked for beside.
            DataError: a line that cannot be read.
        """
        task, asked = self.able("predict"), Asked(probabilities, n_best, format, explain)
        if n_best < 1:
            raise ConfigError(f"predict: n_best should be at least 1, but is {n_best}")
        for name, default in NOTHING_ELSE._asdict().items():
            if getattr(asked, name) != default and name not in task.understands:
                known = ", ".join(sorted(task.understands)) or "nothing beside"
                raise RunError(f"{self.path} ({self.recipe.task}) cannot predict with {name}; it understands {known}")
        checked = checked_lines("predict", lines)
        return task.predict(self.model, checked, *((asked,) if task.understands else ()))  # type: ignore[no-any-return]

    def score(self, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line in nats, each by itself; `first_line` is the number of the first, for errors.

        The result depends neither on the order of the lines, nor on what else is scored with them.

        Raises:
            RunError: a job that scores nothing.
            DataError: a line that cannot be read.
            TypeError: `lines` is no list of texts.
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
        """The prompt and `length` tokens drawn after it: a text, or a list of `count` of them where count > 1.

        A text ends before `stop` where that has been drawn and, with `until_end`, at the symbol that ends a sequence.
        `<unk>`, which stands for what the vocabulary lacks, is drawn with `unk` alone. Same seed, same texts. See
        `everstep.sample` for the other arguments; `stream` gives the same while it is drawn.

        Raises:
            RunError: a job that generates nothing.
            DataError: the prompt has a symbol that the vocabulary lacks.
            ConfigError: an impossible setting.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"generate: prompt should be a text, but is {type(prompt).__name__}")
        how = SamplingSection(prompt=prompt, length=length, temperature=temperature, top_k=top_k, top_p=top_p, unk=unk)
        pieces = self.stream(how, seed=seed, count=count, stop=stop, until_end=until_end)
        texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
        return texts[0] if count == 1 else texts

    @property
    def decode(self) -> SamplingSection:
        """How the recipe says that sequences are drawn; the defaults where its job has no such section."""
        return getattr(self.recipe, "decode", None) or SamplingSection()

    def stream(
        self,
        how: SamplingSection | None = None,
        *,
        seed: int | None = None,
        count: int = 1,
        stop: str = "",
        until_end: bool = False,
    ) -> Iterator[list[str]]:
        """What `generate` gives, while it is drawn: the next piece of each of `count` texts; the first is the prompt.

        `how` is the recipe's own `decode` section if None. A piece may be empty: the bytes of one character come
        together.

        Raises:
            RunError, DataError, ConfigError: as `generate`; at once, before the first piece is asked for.
        """
        how = how or self.decode
        task = self.able("generate")
        decoder: Decoder = task.decoder(self.model, how.prompt)
        _check_room(decoder, count)
        if until_end and decoder.end is None:
            raise ConfigError(
                "generate: until_end (--until-end) needs a symbol that ends a sequence, which this run's vocabulary "
                "lacks; give a text to stop at (--stop)"
            )
        never = () if how.unk else decoder.never
        generator = _generator(seed, decoder.prompt.device)
        sampler = Sampler(how.temperature, how.top_k, how.top_p, never, generator)
        state = map_state(lambda leaf: leaf.expand(count, *leaf.shape[1:]), decoder.state)
        drawn = draws(decoder.step, state, decoder.prompt, how.length, sampler, count)
        spellers = [task.speller() for _ in range(count)]
        end = decoder.end if until_end else None
        return spelled(spellers, decoder.prompt[decoder.begins :].tolist(), drawn, end, stop)

    def passage(self, text: str | None = None, characters: int = 600) -> Passage:
        """What the model reads of a text, else of the held-out data, for pictures.

        Raises:
            RunError: a job that shows none.
        """
        task = self.able("look")
        if not isinstance(task, Draws):
            raise RunError(f"{self.path} ({self.recipe.task}) shows no passages, but other pictures: everstep look")
        with self._where("; to look at a text of your own: look --text FILE"):
            return task.passage(self.model, text, characters)

    def data_gone(self) -> list[str]:
        """The keys of the recipe's data whose files are not where they were: "data.train"."""
        return gone(getattr(self.recipe, "data", None))

    @contextmanager
    def _where(self, otherwise: str) -> Iterator[None]:
        """What cannot be read since a run was moved from its data is said with how to go on."""
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
        """The task, if it understands the verb.

        Raises:
            RunError: it does not; says what it understands.
        """
        task: Any = self.task
        if not isinstance(task, ABILITIES[verb]):
            known = ", ".join(abilities(self.task))
            raise RunError(f"{self.path} ({self.recipe.task}) cannot {verb}; it can {known}")
        return task


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    """Random numbers by a seed, else others each time."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ConfigError(f"generate: seed should be a whole number from 0 to 2^63 - 1, but is {seed!r}")
    return generator.manual_seed(number)


@torch.inference_mode()
def _check_room(decoder: Decoder, count: int) -> None:
    """Refuse more sequences side by side than fit into DRAWN_BYTES."""
    if count < 1:
        raise ConfigError(f"generate: count should be at least 1, but is {count}")
    log_p, _ = decoder.step(decoder.prompt[:1], decoder.state)
    row = sum(leaf.numel() * leaf.element_size() for _, leaf in leaves(decoder.state))
    row += 4 * 8 * log_p.shape[-1]  # a few arrays of float64 over the vocabulary
    if count * row > DRAWN_BYTES:
        raise ConfigError(
            f"generate: count should be at most {DRAWN_BYTES // row:,} for this model, since all texts are drawn side "
            f"by side ({row:,} bytes each), but is {count:,}; draw them in turns, each with another seed"
        )


def warn(line: str) -> None:
    """A line for the user, on stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def checked_lines(who: str, lines: Any) -> Any:
    """Lines that are a list of texts, or give one after another.

    Raises:
        TypeError: they are one text, or one of them is none.
    """
    if isinstance(lines, str | bytes):
        example = [lines] if isinstance(lines, str) else ["To be, or not to be"]
        raise TypeError(f"{who}: expected a list of lines, such as {example!r}, but got one {type(lines).__name__}")
    if isinstance(lines, Iterator):
        return lines
    lines = list(lines)
    wrong = next((type(line).__name__ for line in lines if not isinstance(line, str)), None)
    if wrong is not None:
        raise TypeError(
            f"{who}: expected a list of lines, such as ['To be, or not to be'], but got one with {wrong} in it"
        )
    return lines
