"""Sentences in columns, a word a line: CoNLL's shared tasks, tables parted by anything, CoNLL-U.

A line that is blank, or holds spaces, tabs and byte-order marks alone, ends a sentence. `-DOCSTART-` in the column of
words marks a document and is no word. A line that begins with `#` is a comment, unless it has as many columns as the
others, which words such as `#` and `#this` have. Where columns are parted by spaces, `# id 5` is one all the same:
before the first word of a sentence, with a small letter in its second column. Of CoNLL-U, tokens of several words
(`1-2`) and empty nodes (`1.1`) are no words. All of these stay with their sentence, so that it can be written as it was
read.
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
"""The names of CoNLL-U's columns."""
_NOTHING = " \t\ufeff"
_RUN = re.compile("[ \t]+")
_ID = re.compile(r"[0-9]+(?P<no_word>-[0-9]+|\.[0-9]+)?")


class Columns(NamedTuple):
    """Which columns, or keys, hold what; numbers from 0, or from −1 backwards, or names."""

    word: int | str
    tags: tuple[int | str, ...]
    features: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence, and what stands around them.

    Attributes:
        words: N words as they are written.
        tags: of each column of tags, N; nothing where only words are read.
        features: of each column of features, N.
        numbers: of each word, the number of its line, from 1.
        lines: all lines as they came, without their ends: those before, the words, the blank line after.
        places: of each word, which of the lines.
        fillers: lines with columns that are no words, each with what it is: "document", "node" or "header".
        separator: what parts the columns.
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
        """The lines with more columns.

        Args:
            added: of each new column, by its name, N entries.
            outside: the entry of a document's mark; those of CoNLL-U that are no words get `_`.

        Example:
            >>> (sentence,) = read_columns(["# one", "The DET", "end NOUN", ""], Columns(0, (1,)), "here")
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
    columns: Columns,
    source: str,
    *,
    separator: str | None = None,
    conllu: bool = False,
    comments: bool = True,
    alone: str = "\t",
    words_only: bool = False,
) -> Iterator[Sentence]:
    """The sentences of lines without their ends; what comes after the last word is one without words.

    Args:
        lines: of one file.
        columns: which hold what; if one is named, the first line names all.
        source: the file, for errors.
        separator: what parts columns; None: a tab if the first line has one, else spaces and tabs, one or more.
        conllu: whether it is CoNLL-U; its columns are parted by tabs and have the names of `CONLLU`.
        comments: False: what begins with `#` is a word like any other, but in CoNLL-U.
        alone: what parts columns that are added where there is one alone.
        words_only: read no tags, which need not be there.

    Raises:
        DataError: ragged columns, a column that is not there, an empty word or tag, an id that CoNLL-U does not have;
            with the number of the line.
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
    """How the lines of one file are read; the first that is no comment says how many columns there are."""

    def __init__(
        self,
        columns: Columns,
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
        """Look at the first lines, as many as it takes to know the columns; returns those that are to be read."""
        head = []
        for number, line in rows:
            head.append((number, line))
            if line.strip(_NOTHING) and not (self._comments and line.startswith("#")):
                self._see(number, line)
                if any(isinstance(column, str) for column in self._wanted) and not self._conllu:
                    self._header = number
                return head
        for number, line in head:  # all begin with #, of which those with tabs are words
            if "\t" in line.strip(_NOTHING) and not self._conllu:
                self._see(number, line)
                break
        return head

    @property
    def _wanted(self) -> tuple[int | str, ...]:
        return (self._columns.word, *self._columns.features, *self._tags)

    def _see(self, number: int, line: str) -> None:
        """Learn from the first line of columns."""
        if self._separator is None and "\t" in line.strip(_NOTHING):
            self._separator = "\t"
        fields = self._fields(line)
        self._width, self._first = len(fields), number
        if self._conllu and len(fields) < len(CONLLU):
            raise DataError(
                f"{self._source}, line {number}: expected CoNLL-U, of {len(CONLLU)} columns parted by tabs, came "
                f"{_count(fields)}: {line[:60]!r}; set data.format=columns if it is none"
            )
        names = CONLLU if self._conllu else tuple(fields)
        self._places = {column: self._place(column, names, number) for column in self._wanted}

    def _place(self, column: int | str, names: Sequence[str], number: int) -> int:
        if isinstance(column, str):
            if column in names:
                return names.index(column)
            near = difflib.get_close_matches(column, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{self._source}, line {number}: expected a column named {column!r}, came {', '.join(names)[:120]}"
                f"{hint}"
            )
        place = column if column >= 0 else self._width + column
        if 0 <= place < self._width:
            return place
        raise DataError(
            f"{self._source}, line {number}: expected a column {column} (counted from 0, or from -1 backwards), came "
            f"{self._width} {'column' if self._width == 1 else 'columns'}: {', '.join(names)[:60]!r}; set "
            "data.word_column, data.tag_column, or data.separator"
        )

    def _fields(self, line: str) -> list[str]:
        return _RUN.split(line.strip(_NOTHING)) if self._separator is None else line.split(self._separator)

    def kind(self, number: int, line: str, begun: bool) -> str:
        """What a line is, in a sentence of which a word came before or not: "blank", "comment", "header", "document",
        "node" or "word"."""
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
                    f"column, came {fields[0][:40]!r}"
                )
            return "node" if found["no_word"] else "word"
        word = fields[self._places.get(self._columns.word, 0)]
        return "document" if word == DOCUMENT else "word"

    def _ragged(self, number: int, line: str, fields: list[str]) -> str:
        parted = {None: "spaces", "\t": "tabs"}.get(self._separator, repr(self._separator))
        return (
            f"{self._source}, line {number}: expected {self._width} columns parted by {parted}, as in line "
            f"{self._first}, came {_count(fields)}: {line[:60]!r}; is a word or a tag missing, or one too many?"
        )

    def sentence(self, block: Sequence[tuple[int, str]]) -> Sentence:
        """The sentence in some lines."""
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
        """Refuse a word or a tag that is not there."""
        where = f"{self._source}, line {number}"
        if not fields[self._places.get(self._columns.word, 0)].strip(_NOTHING):
            raise DataError(f"{where}: expected a word in column {self._columns.word!r}, came nothing")
        for column in self._tags:
            tag = fields[self._places[column]]
            if not tag.strip() or (self._conllu and tag == "_" and column in ("upos", "xpos", 3, 4)):
                word = fields[self._places[self._columns.word]]
                raise DataError(f"{where}: the word {word[:40]!r} has no tag in column {column!r}, came {tag!r}")


def _count(fields: list[str]) -> str:
    return f"{len(fields)} {'column' if len(fields) == 1 else 'columns'}"
