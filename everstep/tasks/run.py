"""Runs: a recipe trained into a folder, and what can be done with such a folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everstep.data import Tokenizer
from everstep.data.decoding import as_read
from everstep.decode import draws
from everstep.errors import ConfigError, Diverged, Interrupted, RunError
from everstep.learn import FitResult, FitSettings, files, fit, load_weights
from everstep.learn.lock import check_idle
from everstep.learn.weights import MODEL_FILE
from everstep.state import State, leaves
from everstep.tasks import card
from everstep.tasks.config import FUNCTION, Config, flat, load_recipe, to_yaml
from everstep.tasks.folder import RECIPE, TOKENIZER, begun
from everstep.tasks.language_model import (
    LanguageModel,
    check_finite,
    likelihood,
    mean_nats,
    report,
    token_log_probs,
    update_rules,
)
from everstep.tasks.opening import CHANGED, check_recipe, compared, digest, opened
from everstep.tasks.scoring import Score, score_lines
from everstep.tasks.texts import (
    Log,
    Texts,
    exact_batches,
    progress_bar,
    quick_batches,
    training_batches,
    with_absolute_paths,
)
from everstep.tasks.unknowns import shown, told, unknown_measures
from everstep.tasks.workers import stoppable

DRAWN_BYTES = 4 << 30
"""Most memory for texts that are drawn side by side."""


class Run:
    """A trained model with its vocabulary and its recipe.

    Attributes:
        path: the run folder.
        config: its recipe, resolved.
        tokenizer: text to tokens and back.
        model: the network, in eval mode.

    >>> import everstep as es
    >>> run = es.train("shakespeare-minute", getfixture("tmp_path") / "run", overrides=["train.max_steps=1"])
    >>> len(run.generate(prompt="To be", length=20, seed=1))
    25
    """

    def __init__(self, path: Path, config: Config, tokenizer: Tokenizer, model: LanguageModel):
        self.path, self.config, self.tokenizer, self.model = path, config, tokenizer, model.eval()
        self._scores: dict[str, dict[str, Any]] = {}

    @cached_property
    def texts(self) -> Texts:
        """The files of the recipe."""
        return Texts.of(self.config.data)

    def initial_state(self, batch: int = 1) -> State:
        """The state before a text begins, leaves (batch, ...)."""
        return self.model.initial_state(batch)

    @torch.inference_mode()
    def step_fn(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """A `StepFn`: tokens (batch,) to log p of the next (batch, vocabulary) in nats, and the new state.

        A text begins with `tokenizer.begin_id` (`<eos>`, or the newline where there is none) in `initial_state`.
        """
        return self.model.step(tokens, state)

    def generate(
        self,
        prompt: str = "",
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        count: int = 1,
    ) -> Any:
        """The prompt and `length` tokens drawn after it: a text, or a list of `count` of them where count > 1.

        Same seed, same texts. See `everstep.sample` for the other arguments; `stream` gives the same while it is drawn.

        Raises:
            DataError: the prompt has a symbol that the vocabulary lacks.
            ConfigError: an impossible setting.
        """
        pieces = self.stream(prompt, length, temperature, top_k, top_p, seed, count)
        texts = ["".join(parts) for parts in zip(*pieces, strict=True)]
        return texts[0] if count == 1 else texts

    def stream(
        self,
        prompt: str = "",
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        count: int = 1,
    ) -> Iterator[list[str]]:
        """What `generate` gives, while it is drawn: the next piece of each of `count` texts; the first is the prompt.

        A piece may be empty: the bytes of one character come together.

        Raises:
            DataError, ConfigError: as `generate`; at once, before the first piece is asked for.
        """
        ids = self._ids(prompt)
        begin = self.tokenizer.begin_id
        read = ids if begin is None else [begin, *ids]
        if not read:
            raise ConfigError("generate: this vocabulary has neither <eos> nor newline to begin with; give a prompt")
        self._check_room(count)
        generator = torch.Generator()
        _ = generator.seed() if seed is None else generator.manual_seed(seed)
        drawn = draws(
            self.model.step,
            self.initial_state(count),
            read,
            length,
            count=count,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        )
        return self._spelled(ids, drawn, count)

    def _spelled(self, prompt: list[int], drawn: Iterator[Tensor], count: int) -> Iterator[list[str]]:
        spellers = [self.tokenizer.speller() for _ in range(count)]
        yield [speller.spell(prompt) for speller in spellers]
        for tokens in drawn:
            yield [speller.spell((token,)) for speller, token in zip(spellers, tokens.tolist(), strict=True)]
        yield [speller.end() for speller in spellers]

    def _check_room(self, count: int) -> None:
        """Refuse more texts side by side than fit into DRAWN_BYTES."""
        row = sum(leaf.numel() * leaf.element_size() for _, leaf in leaves(self.initial_state(1)))
        row += 4 * 8 * self.tokenizer.vocab_size  # a few arrays of float64 over the vocabulary
        if count * row > DRAWN_BYTES:
            raise ConfigError(
                f"generate: count should be at most {DRAWN_BYTES // row:,} for this model, since all texts are drawn "
                f"side by side ({row:,} bytes each), but is {count:,}; draw them in turns, each with another seed"
            )

    def _ids(self, text: str) -> list[int]:
        """The tokens of the beginning of a text."""
        return self.tokenizer.encode(as_read(text), line_end=False).tolist()  # type: ignore[no-any-return]

    def unknown(self, text: str) -> int:
        """How many tokens of a text are `<unk>` to this vocabulary."""
        return 0 if self.tokenizer.unk_id is None else self._ids(text).count(self.tokenizer.unk_id)

    def score(self, lines: Sequence[str], first_line: int = 1) -> list[Score]:
        """log p of each line in nats, each from a fresh state: Σ_t log p(x_t | x_<t).

        The context of the first token is `tokenizer.begin_id`. The end of the line is scored as `<eos>` where the
        vocabulary has one. The result does not depend on the order of the lines, nor on what else is scored with them.
        `first_line` is the number of the first line, for errors.

        Raises:
            DataError: a line has a symbol that the vocabulary lacks; names the line.
            TypeError: `lines` is no list of texts.
        """
        return score_lines(self.model, self.tokenizer, lines, first_line)

    def evaluate(self, split: str = "valid") -> dict[str, Any]:
        """The score of a split, read once from its first token to its last with the state carried.

        Returns:
            task, split, text ("as trained"; "changed" since the run began, which stderr is told, too; or "not recorded"
            by an early version), tokens, what `everstep.tasks.unknowns.unknown_measures` tells of `<unk>`, and the
            measures of `everstep.tasks.language_model.report`.

        Raises:
            DataError: the run has no such split, or its text is gone.
            RunError: the model gives NaN or infinity.
        """
        if split not in self._scores:
            corpus = self.texts.corpus(split, self.tokenizer)
            batches = exact_batches(self.config, corpus, self.tokenizer)
            with progress_bar(f"scoring {split}") as progress:
                nats, tokens = mean_nats(self.model, batches, progress)
            check_finite(f"the score of {split}", nats)
            measures = report(nats, tokens, corpus.chars, corpus.bytes, corpus.words)
            unknown = unknown_measures(corpus.unknown, tokens, self.tokenizer, self.texts.read(split))
            text = compared(self.path, split, corpus.digest)
            if text == CHANGED:
                _stderr(f"warning: {split} has changed since {self.path} was begun: this is the score of another text")
            head = {"task": self.config.task, "split": split, "text": text, "tokens": tokens}
            self._scores[split] = {**head, **unknown, **measures}
        return dict(self._scores[split])

    def surprise(self, text: str) -> list[tuple[str, float]]:
        """Each token of a text with −log2 p(token | those before it), in bits; the bytes of one character are one."""
        begin = self.tokenizer.begin_id
        ids = self._ids(text)
        row = torch.tensor([ids if begin is None else [begin, *ids]])
        logps = token_log_probs(self.model, row[:, :-1], row[:, 1:], torch.tensor([row.shape[1] - 1]))
        bits = (-logps[0] / torch.log(torch.tensor(2.0))).tolist()
        scored = ids if begin is not None else ids[1:]
        return list(_whole_characters(self.tokenizer, scored, bits))


def _whole_characters(tokenizer: Tokenizer, ids: list[int], bits: list[float]) -> Iterator[tuple[str, float]]:
    """The text of each token with its bits; tokens that are bytes of one character come as that character."""
    start = 0
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:stop])
        if not text.endswith("\ufffd") or stop == len(ids):
            yield text, sum(bits[start:stop])
            start = stop


def train(
    recipe: Config | str | Path, out: str | Path, log: Log | None = None, *, overrides: Sequence[str] = ()
) -> Run:
    """Train by a recipe into a new folder.

    Args:
        recipe: a shipped name, a YAML file, or a `Config`.
        out: the folder to make.
        log: takes each line for the user; None is stderr.
        overrides: changes such as "train.max_minutes=5", where `recipe` is a name or a file.

    Raises:
        ConfigError: the recipe cannot be used; nothing was done.
        DataError: its text cannot be used; nothing was left behind.
        RunError: `out` exists, or cannot be written.
        Diverged, Interrupted: see `everstep.fit`.
    """
    config = recipe if isinstance(recipe, Config) else load_recipe(recipe, overrides)
    config = config.model_copy(update={"data": with_absolute_paths(config.data)})
    out = Path(out)
    say = log or _stderr
    with stoppable("training had not begun, and nothing is left of it"), begun(out):
        texts = Texts.of(config.data)
        tokenizer = texts.tokenizer()
        job = _Job(out, config, texts, tokenizer, say)
        job.begin()
    return job.fit(resume=False)


def resume(out: str | Path, log: Log | None = None) -> Run:
    """Go on with a run that was stopped; from its newest checkpoint, exactly as if it had not been.

    Raises:
        RunError: no run, of a newer version, in use, or its text has changed.
        CheckpointError: every checkpoint is damaged.
    """
    out = Path(out)
    with stoppable(f"training had not gone on, and {out} is as it was"):
        config, tokenizer, _ = opened(out)
        job = _Job(out, config, Texts.of(config.data), tokenizer, log or _stderr)
    return job.fit(resume=True)


def load(path: str | Path) -> Run:
    """A trained run, ready to use.

    Raises:
        RunError: no run, of a newer version, not trained yet, or damaged.
    """
    path = Path(path)
    config, tokenizer, begun_with = opened(path)
    if "recipe" in begun_with:
        check_recipe(path, config, begun_with["recipe"])
    weights = path / MODEL_FILE
    if not weights.exists():
        check_idle(path, f"{path} has no {MODEL_FILE} yet, since it is being trained")
        raise RunError(f"{path} has no {MODEL_FILE} yet; finish it: {_resuming(path)}")
    model = LanguageModel(tokenizer.vocab_size, config.model)
    try:
        load_weights(model, weights, sealed="recipe" in begun_with)
    except RunError as error:
        raise RunError(f"{error}. If its checkpoints are whole, they have it: {_resuming(path)}") from None
    return Run(path, config, tokenizer, model)


class _Job:
    """A recipe with its texts as tokens, ready to be fitted."""

    def __init__(self, out: Path, config: Config, texts: Texts, tokenizer: Tokenizer, say: Log):
        self.out, self.config, self.tokenizer, self.say = out, config, tokenizer, say
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.corpora = {split: texts.corpus(split, tokenizer) for split in texts.spans}
        say(f"text: {config.data.train if isinstance(config.data.train, str) else ', '.join(config.data.train)}")
        if empty := texts.left_out():
            say(f"left out: {empty}")
        say(f"vocabulary: {tokenizer.vocab_size:,} {config.data.unit}")
        for split, corpus in self.corpora.items():
            say(f"{split}: {corpus.summary()}")
        train, valid = self.corpora["train"], self.corpora.get("valid")
        if valid is not None and valid.digest == train.digest:
            say("warning: data.valid is the same text as data.train; its score will say nothing about new text")
        self.batches = training_batches(config, train, tokenizer)
        self.quick = None if valid is None else quick_batches(config, valid, tokenizer)
        torch.manual_seed(config.seed)
        self.model = LanguageModel(tokenizer.vocab_size, config.model, config.train.label_smoothing)
        self.rules = update_rules(self.model, config.train, config.seed)

    @property
    def identity(self) -> dict[str, Any]:
        """The SHA-256 of the tokens of each split."""
        return {split: corpus.digest for split, corpus in self.corpora.items()}

    def begin(self) -> None:
        """Write what makes a run; the recipe last, since there is a run as soon as there is one."""
        vocabulary = self.tokenizer.to_bytes()
        begun_with = {"recipe": flat(self.config), "tokenizer": digest(vocabulary), "texts": self.identity}
        with files.explained(self.out):
            files.replace_file(self.out / TOKENIZER, vocabulary)
            card.write_environment(self.out, **begun_with)
            files.replace_file(self.out / RECIPE, to_yaml(self.config).encode())

    def fit(self, resume: bool) -> Run:
        """Train, score, and write the card."""
        config, model = self.config, self.model
        if not resume:
            self.say(f"model: {model.body}\n{_count(model):,} parameters")
        names = {field.name for field in fields(FitSettings)} - {"seed"}
        settings = FitSettings(**config.train.model_dump(include=names), seed=config.seed)
        recipe = flat(config, leave_out={"seed", *(f"train.{name}" for name in names)})
        quick = self.quick
        result = self._fitted(
            model,
            likelihood(config.train.k2, config.train.activation_penalty, config.train.change_penalty),
            self.batches,
            settings,
            out=self.out,
            validate=None if quick is None else lambda m: mean_nats(m, quick)[0],
            rules=self.rules,
            resume=resume,
            identity=self.identity | {key: recipe[key] for key in FUNCTION},
            recipe=recipe,
            resume_command=_resuming(self.out),
            log=self.say if self.say is not _stderr else None,
        )
        run = Run(self.out, config, self.tokenizer, model)
        self._report(run, result)
        return run

    def _fitted(self, *given: Any, **options: Any) -> FitResult:
        """`fit`, whose advice after a divergence says where to follow it; the run then goes by the recipe as it is."""
        try:
            result = fit(*given, **options)
            self._amend()
            return result
        except Interrupted:
            self._amend()
            raise
        except Diverged as error:
            where = f"Settings are in {self.out / 'config.yaml'}; then: {_resuming(self.out)}"
            raise Diverged(f"{error}. {where}") from None

    def _amend(self) -> None:
        card.amend_environment(self.out, recipe=flat(self.config), texts=self.identity)

    def _report(self, run: Run, result: FitResult) -> None:
        scores = {split: run.evaluate(split) for split in self.corpora if split != "train"}
        card.write_scores(self.out, scores)
        summary = {
            "vocabulary": self.tokenizer.vocab_size,
            "parameters": _count(run.model),
            "steps": result.steps,
            "epochs": result.epochs,
            "minutes": result.seconds / 60,
            "stopped_by": result.stopped_by,
            "clocked": result.clocked or result.stopped_by == "max_minutes",
            "scores": scores,
        }
        card.write_card(self.out, self.config, summary)
        self.say(f"done: {result.steps:,} steps, {result.epochs:.2f} epochs, {result.seconds:.0f} s")
        for split, measures in scores.items():
            unknown = f" ({share})" if (share := told(measures)) else ""
            self.say(
                f"{split}: {measures['nats_per_token']:.4f} nats per token, perplexity {measures['perplexity']:.2f}, "
                f"{shown(measures, 'bits_per_char')} bits per character{unknown}"
            )


def _resuming(path: Path) -> str:
    return f"everstep train --resume {shlex.quote(str(path))}"


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
