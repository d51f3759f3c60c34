"""Texts of a recipe's `data` section: vocabulary, token files and batches."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from everstep.data import Batches, Buckets, Corpus, Lanes, Tokenizer, expand, prepare, read_blocks
from everstep.data.batches import TokenBatch
from everstep.data.text.remote_files import is_url
from everstep.data.text.text_files import WHOLE, Span, empty_matches, line_end_at
from everstep.errors import DataError, counted
from everstep.runs.named_files import file_problems
from everstep.runs.progress_bar import progress_bar
from everstep.sections import Count, Files, Probability, Section

WITHOUT = "without validation: data.valid_fraction=0 train.patience=null"
UNITS = {"chars": "character", "bytes": "byte", "words": "word", "bpe": "sub-word", "unigram": "sub-word"}
"""The name of a token, by `data.unit`."""


class VocabularySection(Section):
    """Encoding, tokens and vocabulary of a text."""

    encoding: str = "utf-8"
    """encoding of the files"""
    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "chars"
    """kind of tokens; bpe and unigram are sub-words"""
    lowercase: bool = False
    """convert the text to lower case"""
    normal_form: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None
    """Unicode normal form of the text"""
    min_count: Count = 1
    """rarer tokens become <unk>"""
    max_size: int | None = Field(None, ge=2)
    """largest vocabulary; null: 8000 sub-words, or all other tokens"""
    eos: bool | None = None
    """whether lines end with <eos>; null: by unit"""
    unk: bool | None = None
    """whether unknown tokens become <unk>; null: by unit, and for chars if a limit or a held-out text needs it"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """`unk` for units without unknown tokens, no path, and unknown encodings."""
        if self.unit == "bytes" and (self.max_size is not None or self.min_count > 1):
            yield "min_count", "expected 1, and max_size null, where unit is bytes: there are 256 of them"
        if self.unit in ("bytes", "bpe") and self.unk:
            yield "unk", f"expected null or false where unit is {self.unit}, which has no unknown tokens; got true"
        yield from file_problems(self)


class TextSection(VocabularySection):
    """Files, tokens and sequences of a text."""

    train: Files = "everstep:shakespeare"
    """path, list or globs; everstep:NAME is a bundled text; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: the last valid_fraction of train, cut at a line end"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    valid_chars: Count = 2_000_000
    """most characters of it"""
    test: Files | None = None
    """evaluated at the end of training"""
    sequence: Literal["stream", "documents", "lines"] = "stream"
    """unit over which the state is carried: the whole text, each document, each line. With lines, a step learns from as
    many tokens as train.batch_size lines have on average"""
    document_separator: Literal["blank-line", "file"] = "blank-line"
    """separator of documents"""

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0


class Texts:
    """The splits of a recipe as files and ranges of characters. Files are read when needed.

    Without data.valid, the end of the training text is held out, from a line end on.

    Args:
        config: the recipe's `data` section.
    """

    def __init__(self, config: TextSection):
        self.config = config
        self._found: dict[str, tuple[list[Path], Span]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        test = self.config.test is not None
        return ("train", *(("valid",) if self.config.validated else ()), *(("test",) if test else ()))

    def left_out(self) -> str:
        """A sentence on empty files that the globs of each split match; "" if none."""
        named = {split: getattr(self.config, split) for split in ("train", "valid", "test")}
        empty = {split: len(empty_matches(paths)) for split, paths in named.items() if paths is not None}
        return ", ".join(f"{counted(count, 'empty file')} of data.{split}" for split, count in empty.items() if count)

    def read(self, split: str) -> Iterator[str]:
        """The text of a split in blocks.

        Raises:
            DataError: there is no such split.
        """
        paths, span = self._span(split)
        return read_blocks(paths, self.config.encoding, span=span)

    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the training text, with `<unk>` if another split has further symbols.

        `data.unk` overrides this.
        """
        found = self._vocabulary(self.config.unk)
        return found if self.config.unk is not None or self._suffices(found) else self._vocabulary(True)

    def _vocabulary(self, unk: bool | None) -> Tokenizer:
        data = self.config
        return Tokenizer.train(
            self.read("train"),
            data.unit,
            max_size=data.max_size,
            min_count=data.min_count,
            lowercase=data.lowercase,
            normal_form=data.normal_form,
            eos=True if data.sequence == "lines" and data.eos is None else data.eos,
            unk=unk,
        )

    def _suffices(self, tokenizer: Tokenizer) -> bool:
        """Whether the vocabulary covers all splits."""
        if tokenizer.unk_id is not None or tokenizer.kind != "chars":
            return True
        return all(self._spelled(split, tokenizer) for split in self.splits if split != "train")

    def _spelled(self, split: str, tokenizer: Tokenizer) -> bool:
        with self._named(split):
            return all(map(tokenizer.knows, self.read(split)))

    @contextmanager
    def _named(self, split: str) -> Iterator[None]:
        """Add the name of the split to errors."""
        try:
            yield
        except DataError as error:
            held_out = split == "valid" and self.config.valid is None
            where = f" (held out of data.train; {WITHOUT})" if held_out else ""
            raise DataError(f"data.{split}{where}: {error}") from None

    def corpus(self, split: str, tokenizer: Tokenizer) -> Corpus:
        """The tokens of a split, from the cache if possible; otherwise with a progress bar.

        Raises:
            DataError: there is no such split, or its text cannot be tokenised.
        """
        paths, span = self._span(split)
        data = self.config
        if tokenizer.kind != data.unit:
            raise DataError(f"data.unit: the vocabulary is of {tokenizer.kind}, the recipe's of {data.unit}")
        with self._named(split), progress_bar(f"tokenising {split}") as progress:
            return prepare(
                paths,
                tokenizer,
                encoding=data.encoding,
                sequence=data.sequence,
                document_separator=data.document_separator,
                span=span,
                progress=progress,
            )

    def passage(self, text: str | None, characters: int) -> str:
        """Whole lines with about `characters` characters: the beginning of `text`, or else of the held-out text.

        Raises:
            DataError: the passage is blank.
        """
        split = "valid" if self.config.validated else "train"
        head = (next(self.read(split), "") if text is None else text).lstrip("\n")[:characters]
        found = head[: head.rfind("\n") + 1] or head
        if not found.strip():
            raise DataError("the passage is empty; give a text with some lines")
        return found

    def _span(self, split: str) -> tuple[list[Path], Span]:
        """The files of a split, and the range of their characters.

        Raises:
            DataError: there is no such split, a file is missing or cannot be read, or a text is too short to split.
        """
        if split not in self.splits:
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits)}")
        if split not in self._found:
            self._found |= self._look(split)
        return self._found[split]

    def _look(self, split: str) -> dict[str, tuple[list[Path], Span]]:
        config = self.config
        given = {"train": config.train, "valid": config.valid, "test": config.test}[split]
        if split == "test" or config.valid is not None or not config.validated:
            assert given is not None
            return {split: (expand(given), WHOLE)}
        train = expand(config.train)
        cut = line_end_at(train, 1 - config.valid_fraction, config.encoding, config.valid_chars)
        if cut == 0:
            raise DataError("data.train: the text is too short to hold some out of it; give more text, or data.valid")
        return {"train": (train, (0, cut)), "valid": (train, (cut, None))}


def file_keys(section: object) -> tuple[str, ...]:
    """The keys of a `data` section that name files: those of splits, and its `further_files`."""
    return ("train", "valid", "test", *getattr(section, "further_files", ()))


def check_files(
    section: object, splits: Sequence[str] = ("train", "valid", "test"), called: str = "data.{split}"
) -> None:
    """Check that the files of a `data` section exist, before any work; `called` names a key in messages.

    Raises:
        DataError: a name matches no file; the message names its key.
    """
    for split in splits:
        try:
            _files_of(section, split)
        except DataError as error:
            unset = "EVERSTEP_DATA" in str(getattr(section, split)) and not os.environ.get("EVERSTEP_DATA")
            hint = "; EVERSTEP_DATA is not set: set it to the folder that holds the data sets" if unset else ""
            raise DataError(f"{called.format(split=split)}: {error}{hint}") from None


def _files_of(section: object, split: str) -> list[Path]:
    paths = getattr(section, split, None)
    if not isinstance(paths, str | tuple):
        return []
    if look_for := getattr(section, "look_for", None):
        return list(look_for(paths))
    return expand(paths, folders=getattr(section, "takes_folders", False))


def say_trained_files(section: object, say: Callable[[str], None]) -> None:
    """Warn of each file of "valid" and "test" that is training data, too: by its place or its bytes.

    Files whose names end as one of the section's `holds_splits` are not meant: each split reads its own part.
    """
    trained = {path.resolve(): path for path in _files_of(section, "train")}
    sized: dict[int, list[Path]] = {}
    for path in trained.values():
        if path.is_file():
            sized.setdefault(path.stat().st_size, []).append(path)
    for split in ("valid", "test"):
        for path in _files_of(section, split):
            if path.name.lower().endswith(getattr(section, "holds_splits", ())):
                continue
            alike = sized.get(path.stat().st_size, []) if path.is_file() else []
            if path.resolve() in trained or any(filecmp.cmp(path, one, shallow=False) for one in alike):
                too = "is training data, too; what is measured there says nothing about new data"
                say(f"warning: data.{split}: {path} {too}")


def gone(section: object, splits: Sequence[str] = ("train", "valid", "test")) -> list[str]:
    """The keys of a `data` section whose files are missing, "data.train" first."""
    found = []
    for split in splits:
        try:
            check_files(section, [split])
        except DataError:
            found.append(f"data.{split}")
    return found


R = TypeVar("R", bound=Section)


def absolute_path(name: str) -> str:
    """The absolute path of a file; bundled texts, URLs, `~` and variables stay as written."""
    return name if name.startswith(("everstep:", "~", "$")) or is_url(name) else os.path.abspath(name)


def with_absolute_paths(recipe: R) -> R:
    """The recipe with absolute paths in its `data` section."""
    data = getattr(recipe, "data", None)
    if not isinstance(data, Section):
        return recipe
    given = {key: getattr(data, key, None) for key in file_keys(data)}
    found = {
        split: absolute_path(names) if isinstance(names, str) else tuple(map(absolute_path, names))
        for split, names in given.items()
        if isinstance(names, str | tuple)
    }
    return recipe.model_copy(update={"data": data.model_copy(update=found)})


def training_batches(
    section: TextSection,
    corpus: Corpus,
    tokenizer: Tokenizer,
    batch_size: int,
    k1: int,
    k2: int | None,
    seed: int,
    random_k1: bool = False,
) -> Batches[TokenBatch]:
    """Batches for training: lanes with carried state, or separate lines, about `batch_size` of them.

    Batches of lines hold as many tokens, not as many lines, so that tokens of short lines count no more.
    """
    if section.sequence == "lines":
        return Buckets(corpus, batch_size, seed=seed, begin_id=tokenizer.begin_id, even=True)
    return Lanes(corpus, batch_size, k1, k2, seed=seed, begin_id=tokenizer.begin_id, random_k1=random_k1)


def exact_batches(section: TextSection, corpus: Corpus, tokenizer: Tokenizer) -> Batches[TokenBatch]:
    """Batches for a score: one lane over all tokens (or separate lines), so that no context is lost."""
    # all log-probabilities of a window are in memory at once
    window = max(16, min(1024, 2**24 // tokenizer.vocab_size))
    if section.sequence == "lines":
        return Buckets(corpus, 64, begin_id=tokenizer.begin_id, shuffle=False, max_tokens=window)
    return Lanes(corpus, 1, window, begin_id=tokenizer.begin_id, shuffle=False)


def quick_batches(section: TextSection, corpus: Corpus, tokenizer: Tokenizer) -> Batches[TokenBatch]:
    """Batches for a quick validation during training: up to 16 parallel lanes, each starting in the initial state."""
    if section.sequence == "lines":
        return exact_batches(section, corpus, tokenizer)
    lanes = max(1, min(16, len(corpus) // 500))
    return Lanes(corpus, lanes, 128, begin_id=tokenizer.begin_id, shuffle=False)
