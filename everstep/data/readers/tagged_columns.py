"""Sentences in columns, one word per line: CoNLL's shared tasks, tables with any separator, CoNLL-U.

A line that is blank, or holds only spaces, tabs and byte-order marks, ends a sentence. `-DOCSTART-` in the column of
words marks a document. A line that begins with `#` is a comment, unless it has as many columns as the others, as words
such as `#` and `#this` do. With space-separated columns, a line such as `# id 5` before the first word of a sentence is
a comment all the same if its second column begins with a lower-case letter. In CoNLL-U, multiword tokens (`1-2`) and
empty nodes (`1.1`) are not words. All these lines are kept with their sentence, so that it can be written as it was.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from everstep.errors import DataError

DOCUMENT = "-DOCSTART-"
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The column names of CoNLL-U."""
_NOTHING = " \t\ufeff"
_RUN = re.compile("[ \t]+")
_ID = re.compile(r"[0-9]+(?P<no_word>-[0-9]+|\.[0-9]+)?")


class TagColumns(NamedTuple):
    """The columns or keys of words, tags and features: numbers from 0, or from −1 backwards, or names."""

    word: int | str
    tags: tuple[int | str, ...]
    features: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence, and the lines it came from.

    Attributes:
        words: the N words, as written.
        tags: for each tag column, N tags; empty if only words are read.
        features: for each feature column, N features.
        numbers: the line number of each word, from 1.
        lines: all lines as they came, without line ends: those before the words, the words, the blank line after.
        places: the index of each word in `lines`.
        fillers: lines with columns that are not words, by index, each with its kind: "document", "node" or "header".
        separator: the column separator.
    """

    words: list[str]
    tags: tuple[list[str], ...] = ()
    features: tuple[list[str], ...] = ()
    numbers: Sequence[int] = ()
    lines: list[str] = field(default_factory=list)
    places: Sequence[int] = ()
    fillers: dict[int, str] = field(default_factory=dict)
    separator: str = "\t"

    def with_columns(self, added: Mapping[str, Sequence[str]], outside: str = "_") -> list[str]:
        """The lines with additional columns.

        Args:
            added: N entries for each new column, by name.
            outside: the entry for a document mark; CoNLL-U lines that are not words get `_`.

        Example:
            >>> (sentence,) = read_columns(["# one", "The DET", "end NOUN", ""], TagColumns(0, (1,)), "here")
            >>> sentence.with_columns({"tag": ["D", "N"]})
            ['# one', 'The DET D', 'end NOUN N', '']
        """
        found = list(self.lines)
        for place, entries in zip(self.places, zip(*added.values(), strict=True), strict=True):
            found[place] = self.separator.join([found[place].rstrip(" "), *entries])
        for place, kind in self.fillers.items():
            entries = tuple(added) if kind == "header" else ((outside if kind == "document" else "_"),) * len(added)
            found[place] = self.separator.join([found[place].rstrip(" "), *entries])
        return found


def read_columns(
    lines: Iterable[str],
    columns: TagColumns,
    source: str,
    *,
    separator: str | None = None,
    conllu: bool = False,
    comments: bool = True,
    alone: str = "\t",
    words_only: bool = False,
) -> Iterator[Sentence]:
    """Yield the sentences of a file; lines after the last word form a sentence without words.

    Args:
        lines: the lines of one file, without line ends.
        columns: the columns to read; if any is given by name, the first line names all columns.
        source: the file, for errors.
        separator: the column separator; None: a tab if the first line has one, else runs of spaces and tabs.
        conllu: whether the format is CoNLL-U, with tab-separated columns named as in `CONLLU`.
        comments: if false, a line that begins with `#` is a word like any other, except in CoNLL-U.
        alone: separator of added columns in a file with a single column.
        words_only: read no tags; their columns may be missing.

    Raises:
        DataError: ragged columns, a missing column, an empty word or tag, an invalid CoNLL-U id; the message names the
            line.
    """
    reader = _Reader(columns, source, "\t" if conllu else separator, conllu, comments, alone, words_only)
    rows = enumerate(lines, 1)
    head = reader.begin(rows)
    block: list[tuple[int, str]] = []
    words = False
    for number, line in chain(head, rows):
        block.append((number, line))
        if not line.strip(_NOTHING):
            if words:
                yield reader.sentence(block)
                block, words = [], False
        elif not words:
            words = reader.kind(number, line, begun=False) == "word"
    if block:
        yield reader.sentence(block)


class _Reader:
    """Reads the lines of one file; the first line that is not a comment determines the number of columns."""

    def __init__(
        self,
        columns: TagColumns,
        source: str,
        separator: str | None,
        conllu: bool,
        comments: bool,
        alone: str,
        words_only: bool,
    ):
        self._columns, self._source, self._separator, self._conllu = columns, source, separator, conllu
        self._comments = comments or conllu
        self._alone, self._tags = alone, () if words_only else columns.tags
        self._width, self._first, self._header = 1, 0, 0
        self._places: dict[int | str, int] = {}

    def begin(self, rows: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
        """Read first lines until the columns are known; return the lines that remain to be parsed."""
        head = []
        for number, line in rows:
            head.append((number, line))
            if line.strip(_NOTHING) and not (self._comments and line.startswith("#")):
                self._see(number, line)
                if any(isinstance(column, str) for column in self._wanted) and not self._conllu:
                    self._header = number
                return head
        for number, line in head:  # all begin with #; those with tabs are words
            if "\t" in line.strip(_NOTHING) and not self._conllu:
                self._see(number, line)
                break
        return head

    @property
    def _wanted(self) -> tuple[int | str, ...]:
        return (self._columns.word, *self._columns.features, *self._tags)

    def _see(self, number: int, line: str) -> None:
        """Determine columns and separator from the first line of columns."""
        if self._separator is None and "\t" in line.strip(_NOTHING):
            self._separator = "\t"
        fields = self._fields(line)
        self._width, self._first = len(fields), number
        if self._conllu and len(fields) < len(CONLLU):
            raise DataError(
                f"{self._source}, line {number}: expected CoNLL-U, of {len(CONLLU)} columns separated by tabs, got "
                f"{_count(fields)}: {line[:60]!r}; set data.format=columns if it is none"
            )
        names = CONLLU if self._conllu else tuple(fields)
        self._places = {column: self._place(column, names, number) for column in self._wanted}
        if self._places[self._columns.word] in [self._places[column] for column in self._tags]:
            raise DataError(
                f"{self._source}, line {number}: expected a column of tags beside that of words, got "
                f"{_count(fields)}: {line[:60]!r}; set data.word_column, data.tag_column, or data.separator"
            )

    def _place(self, column: int | str, names: Sequence[str], number: int) -> int:
        if isinstance(column, str):
            if column in names:
                return names.index(column)
            near = difflib.get_close_matches(column, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{self._source}, line {number}: expected a column named {column!r}, got {', '.join(names)[:120]}{hint}"
            )
        place = column if column >= 0 else self._width + column
        if 0 <= place < self._width:
            return place
        raise DataError(
            f"{self._source}, line {number}: expected a column {column} (counted from 0, or from -1 backwards), got "
            f"{self._width} {'column' if self._width == 1 else 'columns'}: {', '.join(names)[:60]!r}; set "
            "data.word_column, data.tag_column, or data.separator"
        )

    def _fields(self, line: str) -> list[str]:
        return _RUN.split(line.strip(_NOTHING)) if self._separator is None else line.split(self._separator)

    def kind(self, number: int, line: str, begun: bool) -> str:
        """The kind of a line: "blank", "comment", "header", "document", "node" or "word".

        `begun`: whether a word of the sentence came before.
        """
        if number == self._header:
            return "header"
        if not line.strip(_NOTHING):
            return "blank"
        fields = self._fields(line)
        if self._comments and line.startswith("#"):
            written = not begun and self._separator is None and fields[0] == "#"
            says_something = written and len(fields) > 1 and fields[1] != fields[1].upper()
            if self._conllu or len(fields) != self._width or says_something:
                return "comment"
        if len(fields) != self._width:
            raise DataError(self._ragged(number, line, fields))
        if self._conllu:
            found = _ID.fullmatch(fields[0])
            if found is None:
                raise DataError(
                    f"{self._source}, line {number}: expected an id of CoNLL-U (1, or 1-2, or 1.1) in the first "
                    f"column, got {fields[0][:40]!r}"
                )
            return "node" if found["no_word"] else "word"
        word = fields[self._places.get(self._columns.word, 0)]
        return "document" if word == DOCUMENT else "word"

    def _ragged(self, number: int, line: str, fields: list[str]) -> str:
        parted = {None: "spaces", "\t": "tabs"}.get(self._separator, repr(self._separator))
        return (
            f"{self._source}, line {number}: expected {self._width} columns separated by {parted}, as in line "
            f"{self._first}, got {_count(fields)}: {line[:60]!r}; is a word or a tag missing, or one too many?"
        )

    def sentence(self, block: Sequence[tuple[int, str]]) -> Sentence:
        """The sentence in a block of numbered lines."""
        lines = [line for _, line in block]
        places, numbers, fillers = [], [], {}
        rows: list[list[str]] = []
        for place, (number, line) in enumerate(block):
            kind = self.kind(number, line, bool(rows))
            if kind in ("document", "node", "header"):
                fillers[place] = kind
            if kind == "word":
                fields = self._fields(line)
                self._check(number, fields)
                rows.append(fields)
                places.append(place)
                numbers.append(number)
        return Sentence(
            self._column(rows, self._columns.word),
            tuple(self._column(rows, column) for column in self._tags),
            tuple(self._column(rows, column) for column in self._columns.features),
            numbers,
            lines,
            places,
            fillers,
            (self._separator or " ") if self._width > 1 else self._alone,
        )

    def _column(self, rows: list[list[str]], column: int | str) -> list[str]:
        place = self._places.get(column, 0)
        return [fields[place] for fields in rows]

    def _check(self, number: int, fields: list[str]) -> None:
        """Refuse an empty word or tag."""
        where = f"{self._source}, line {number}"
        if not fields[self._places.get(self._columns.word, 0)].strip(_NOTHING):
            raise DataError(f"{where}: expected a word in column {self._columns.word!r}, got nothing")
        for column in self._tags:
            tag = fields[self._places[column]]
            if not tag.strip() or (self._conllu and tag == "_" and column in ("upos", "xpos", 3, 4)):
                word = fields[self._places[self._columns.word]]
                raise DataError(f"{where}: the word {word[:40]!r} has no tag in column {column!r}, got {tag!r}")


def _count(fields: list[str]) -> str:
    return f"{len(fields)} {'column' if len(fields) == 1 else 'columns'}"
