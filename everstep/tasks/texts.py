"""From a recipe's `data` section to a tokenizer, token files and batches."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from everstep.data import Batches, Buckets, Corpus, Lanes, Tokenizer, expand, prepare, read_blocks
from everstep.data.text import WHOLE, Span, empty_matches, line_end_at
from everstep.errors import DataError
from everstep.tasks.config import Config, DataConfig

Log = Callable[[str], None]
WITHOUT = "without validation: data.valid_fraction=0 train.patience=null"


@dataclass(frozen=True)
class Texts:
    """The splits of a recipe: which files, and which characters of them."""

    config: DataConfig
    spans: dict[str, tuple[list[Path], Span]]

    @classmethod
    def of(cls, config: DataConfig) -> Texts:
        """Find the files; without data.valid, the end of the training text is held out, from the end of a line on.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        train = expand(config.train)
        spans: dict[str, tuple[list[Path], Span]] = {"train": (train, WHOLE)}
        if config.valid is not None:
            spans["valid"] = (expand(config.valid), WHOLE)
        elif config.valid_fraction > 0:
            cut = line_end_at(train, 1 - config.valid_fraction, config.encoding, config.valid_chars)
            if cut == 0:
                raise DataError(
                    "data.train: the text is too short to hold some out of it; give more text, or data.valid"
                )
            spans |= {"train": (train, (0, cut)), "valid": (train, (cut, None))}
        if config.test is not None:
            spans["test"] = (expand(config.test), WHOLE)
        return cls(config, spans)

    def left_out(self) -> str:
        """In words, how many empty files the globs of each split match; nothing if none."""
        named = {split: getattr(self.config, split) for split in ("train", "valid", "test")}
        empty = {split: len(empty_matches(paths)) for split, paths in named.items() if paths is not None}
        return ", ".join(
            f"{count:,} empty file{'s' * (count != 1)} of data.{split}" for split, count in empty.items() if count
        )

    def read(self, split: str) -> Iterator[str]:
        """The text of a split in blocks.

        Raises:
            DataError: there is no such split.
        """
        paths, span = self._span(split)
        return read_blocks(paths, self.config.encoding, span=span)

    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the training text alone."""
        data = self.config
        return Tokenizer.train(
            self.read("train"),
            data.unit,
            max_size=data.max_size,
            min_count=data.min_count,
            lowercase=data.lowercase,
            normal_form=data.normal_form,
            eos=True if data.sequence == "lines" and data.eos is None else data.eos,
            unk=data.unk,
        )

    def corpus(self, split: str, tokenizer: Tokenizer) -> Corpus:
        """A split as tokens, from the cache if it was made before; with a progress bar if it takes long.

        Raises:
            DataError: there is no such split, or its text cannot be tokenised.
        """
        paths, span = self._span(split)
        data = self.config
        try:
            with progress_bar(f"tokenising {split}") as progress:
                return prepare(
                    paths,
                    tokenizer,
                    encoding=data.encoding,
                    sequence=data.sequence,
                    document_separator=data.document_separator,
                    span=span,
                    progress=progress,
                )
        except DataError as error:
            held_out = split == "valid" and data.valid is None
            where = f" (held out of data.train; {WITHOUT})" if held_out else ""
            raise DataError(f"data.{split}{where}: {error}") from None

    def _span(self, split: str) -> tuple[list[Path], Span]:
        if split not in self.spans:
            raise DataError(f"this run has no {split} split; it has {', '.join(self.spans)}")
        return self.spans[split]


def with_absolute_paths(config: DataConfig) -> DataConfig:
    """The same files, found from any folder. Bundled texts, `~` and variables stay as they are written."""

    def absolute(name: str) -> str:
        return name if name.startswith(("everstep:", "~", "$")) else os.path.abspath(name)

    given = {split: getattr(config, split) for split in ("train", "valid", "test")}
    found = {
        split: absolute(names) if isinstance(names, str) else tuple(map(absolute, names))
        for split, names in given.items()
        if names is not None
    }
    return config.model_copy(update=found)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal; gives what to call with how much is done of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def training_batches(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Batches:
    """What `fit` learns from: lanes with carried state, or lines by themselves."""
    train = config.train
    if config.data.sequence == "lines":
        return Buckets(corpus, train.batch_size, seed=config.seed, begin_id=tokenizer.begin_id)
    return Lanes(corpus, train.batch_size, train.k1, train.k2, seed=config.seed, begin_id=tokenizer.begin_id)


def exact_batches(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Batches:
    """For a score: one lane from the first token to the last (or lines by themselves), so that no context is lost."""
    # a window's log-probabilities are held at once
    window = max(16, min(1024, 2**24 // tokenizer.vocab_size))
    if config.data.sequence == "lines":
        return Buckets(corpus, 64, begin_id=tokenizer.begin_id, shuffle=False, max_tokens=window)
    return Lanes(corpus, 1, window, begin_id=tokenizer.begin_id, shuffle=False)


def quick_batches(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Batches:
    """For a look at the validation during training: up to 16 lanes side by side, each of which starts afresh."""
    if config.data.sequence == "lines":
        return exact_batches(config, corpus, tokenizer)
    lanes = max(1, min(16, len(corpus) // 500))
    return Lanes(corpus, lanes, 128, begin_id=tokenizer.begin_id, shuffle=False)
