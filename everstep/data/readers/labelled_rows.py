"""What every format of labelled texts gives: rows, and what was skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from everstep.data.text.files import file_lines
from everstep.errors import DataError

BLANK = "blank line"


class Columns(NamedTuple):
    """The names (or, in digits, the numbers from 0) of the columns of texts and labels."""

    text: str
    label: str


class Row(NamedTuple):
    """One labelled text. `line` is where it starts, from 1; 0 where the whole file is the text."""

    text: str
    label: str
    path: Path
    line: int


class Skipped(NamedTuple):
    """Something that holds no text."""

    reason: str


def text_lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file, each with its end.

    Raises:
        DataError: it cannot be read, or a line holds a NUL byte.
    """
    for number, line in enumerate(file_lines(path, encoding), 1):
        if "\0" in line:
            raise DataError(f"{path}, line {number}: holds a NUL byte; expected text; remove it (tr -d '\\000')")
        yield line


def unpacked_name(path: Path) -> str:
    """The file's name without the suffix of its compression."""
    return path.stem if path.suffix in (".gz", ".xz") else path.name
