"""Reading sentences with a tag for each word."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from everstep.data.readers.tagged_columns import Sentence
from everstep.data.readers.tagged_formats import Format, columns_of, format_of, read_sentences
from everstep.data.text.text_files import expand, file_lines
from everstep.errors import DataError


@dataclass(frozen=True)
class Tagged:
    """Tagged sentences.

    Attributes:
        sentences: the sentences with words, in the order of the files.
        files: the file of each sentence.
        skipped: number of lines skipped, by reason.
        format: the format of the last file.
        separator: the column separator of the last file.
    """

    sentences: list[Sentence]
    files: list[Path]
    skipped: dict[str, int]
    format: Format
    separator: str

    def __len__(self) -> int:
        return len(self.sentences)

    def place(self, sentence: int, word: int = 0) -> str:
        """The source of a word for messages, as `train.conll, line 7`."""
        return f"{self.files[sentence]}, line {self.sentences[sentence].numbers[word]}"

    def tags(self, column: int) -> list[list[str]]:
        """The tags of each sentence in tag column number `column`, counting the columns that were read."""
        return [sentence.tags[column] for sentence in self.sentences]

    def select(self, places: Sequence[int]) -> Tagged:
        """The sentences with these indices; `skipped` is not passed on."""
        kept = [self.sentences[place] for place in places]
        return Tagged(kept, [self.files[place] for place in places], {}, self.format, self.separator)

    def held_out(self, share: float, seed: int) -> tuple[Tagged, Tagged]:
        """A random split into (rest, held out), with about `share` of the sentences held out; both keep their order.

        Raises:
            DataError: there is only one sentence.
        """
        if len(self) < 2:
            raise DataError(
                f"{self.place(0)}: there is one sentence alone, so that none can be held out; give data.valid, or "
                "train without validation: data.valid_fraction=0"
            )
        out = np.zeros(len(self), bool)
        size = min(max(round(share * len(self)), 1), len(self) - 1)
        out[np.random.default_rng(seed).permutation(len(self))[:size]] = True
        return self.select(np.flatnonzero(~out).tolist()), self.select(np.flatnonzero(out).tolist())

    def digest(self) -> str:
        """A SHA-256 of all words, features and tags."""
        total = hashlib.sha256()
        for sentence in self.sentences:
            for column in (sentence.words, *sentence.features, *sentence.tags):
                total.update("\n".join(column).encode("utf-8", "surrogatepass") + b"\n\0")
            total.update(b"\1")
        return total.hexdigest()


def read_tagged(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    word: int | str | None = None,
    tags: Sequence[int | str] | int | str | None = None,
    features: Sequence[int | str] = (),
    format: Format | None = None,
    separator: str | None = None,
    comments: bool = True,
    encoding: str = "utf-8",
) -> Tagged:
    """Tagged sentences from files (plain, `.gz`, `.xz`), globs or bundled names (see `expand`).

    Args:
        paths: names or globs, read in the given order.
        word, tags, features: the columns (or keys) of words, tags and features; for None see `columns_of`.
        format: the format of all files; None: by the file's name or its first line.
        separator: the column separator; None: tabs if there are any, else spaces.
        comments: if false, a line that begins with `#` is a word like any other.
        encoding: encoding of all files.

    Raises:
        DataError: a file cannot be read, with file and line, or there is no sentence.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "own.conll")
        ...     _ = path.write_text("# one\\nThe DET\\nend NOUN\\n\\n")
        ...     read = read_tagged(path)
        >>> read.sentences[0].words, read.tags(0)
        (['The', 'end'], [['DET', 'NOUN']])
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else paths
    sentences: list[Sentence] = []
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    known: dict[str, str] = {}
    found: Format = format or "columns"
    listed = expand([os.fspath(path) for path in named])
    for path in listed:
        lines: Iterator[str] = (line.removesuffix("\n") for line in file_lines(path, encoding))
        found, lines = (format, lines) if format else format_of(path.name, lines)
        columns = columns_of(found, word, tags, features)
        if found == "text":
            raise DataError(f"{path}: expected words with tags (data.format columns, conllu, jsonl), got plain text")
        for sentence in read_sentences(lines, found, columns, str(path), separator=separator, comments=comments):
            skipped.update(_left_out(sentence, found))
            if sentence.words:
                sentences.append(_lean(sentence, known))
                files.append(path)
    if not sentences:
        raise DataError(f"{', '.join(map(str, listed[:3]))}: no word with a tag")
    return Tagged(sentences, files, dict(skipped), found, sentences[-1].separator)


def _left_out(sentence: Sentence, format: Format) -> Iterator[str]:
    if format == "jsonl":
        yield from [] if sentence.words else ["empty sentence"]
        return
    inside = set(sentence.places) | set(sentence.fillers)
    for place, line in enumerate(sentence.lines):
        if line.startswith("#") and place not in inside:
            yield "comment"
    told = {"document": "document mark", "node": "token of several words or empty node"}
    yield from (told[kind] for kind in sentence.fillers.values() if kind in told)


def _lean(sentence: Sentence, known: dict[str, str]) -> Sentence:
    """The sentence without its lines, with equal strings shared to save memory."""

    def once(texts: list[str]) -> list[str]:
        return [known.setdefault(text, text) for text in texts]

    return Sentence(
        once(sentence.words),
        tuple(map(once, sentence.tags)),
        tuple(map(once, sentence.features)),
        np.array(sentence.numbers, np.int64),  # type: ignore[arg-type]
        separator=sentence.separator,
    )
