"""Rows of labelled texts, common to all formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from everstep.data.text.text_files import file_lines
from everstep.errors import DataError

BLANK = "blank line"


class Columns(NamedTuple):
    """The names (or, in digits, the numbers from 0) of the columns of texts and labels.

    Attributes:
        text: one column, or two, whose texts are joined by a tab.
        label: the column of the labels.
        separator: separator of the labels of one text; None: a text has one label.
        keys: what the recipe's `data` calls the two, for messages.
    """

    text: tuple[str, ...]
    label: str
    separator: str | None = None
    keys: tuple[str, str] = ("text", "label")


class Row(NamedTuple):
    """One labelled text. `line` is its first line, from 1; 0 if the whole file is the text."""

    text: str
    label: str
    path: Path
    line: int


class Skipped(NamedTuple):
    """An entry without a text, and the reason why it is skipped."""

    reason: str


def pair(parts: Sequence[str]) -> str:
    """One text unchanged; two texts joined by a tab, with white space inside each reduced to single spaces.

    Example:
        >>> pair(["so it\\tgoes"]), pair(["so it\\tgoes", "on"])
        ('so it\\tgoes', 'so it goes\\ton')
    """
    return parts[0] if len(parts) == 1 else "\t".join(" ".join(part.split()) for part in parts)


def joined(where: str, labels: Sequence[str], separator: str) -> str:
    """Several labels joined into one string.

    Raises:
        DataError: a label contains the separator.
    """
    for label in labels:
        if separator in label:
            raise DataError(f"{where}: the label {label!r} holds data.label_separator={separator!r}; take another")
    return separator.join(labels)


def text_lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file, including line ends.

    Raises:
        DataError: the file cannot be read, or a line holds a NUL byte.
    """
    for number, line in enumerate(file_lines(path, encoding), 1):
        if "\0" in line:
            raise DataError(f"{path}, line {number}: holds a NUL byte; expected text; remove it (tr -d '\\000')")
        yield line


def unpacked_name(path: Path) -> str:
    """The file name without a compression suffix."""
    return path.stem if path.suffix in (".gz", ".xz") else path.name


def side_by_side(one: Path, other: Path, encoding: str, expected: str) -> Iterator[tuple[str, str]]:
    """The lines of two files, pair by pair; `expected` says of what there should be as many.

    Raises:
        DataError: one file has more lines; the message gives both numbers.
    """
    for first, second in zip_longest(text_lines(one, encoding), text_lines(other, encoding)):
        if first is None or second is None:
            counts = [sum(1 for _ in text_lines(path, encoding)) for path in (one, other)]
            raise DataError(f"{one} has {counts[0]:,} lines, {other} has {counts[1]:,}; expected as many {expected}")
        yield first, second
