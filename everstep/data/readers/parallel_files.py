"""Labelled texts in one file per class, or with labels in a second file, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from everstep.data.readers.labelled_rows import BLANK, Columns, Row, Skipped, side_by_side, unpacked_name
from everstep.errors import DataError


def class_of_file(path: Path) -> str:
    """The class given by a file name: its suffix, or its stem if the suffix is `.txt` or missing.

    Example:
        >>> [class_of_file(Path(name)) for name in ("mpqa.pos", "rt.neg.gz", "spam.txt", "spam")]
        ['pos', 'neg', 'spam', 'spam']
    """
    stem, dot, last = unpacked_name(path).rpartition(".")
    return stem if dot and last == "txt" else last


def rows_of_class(path: Path, label: str, lines: Iterator[str]) -> Iterator[Row | Skipped]:
    """One text per line, all of one class."""
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n")
        yield Skipped(BLANK) if not text else Row(text, label, path, number)


def parallel_rows(path: Path, columns: Columns, encoding: str) -> Iterator[Row | Skipped]:
    """One text per line, with its label on the same line of a second file.

    The name of that file has `columns.label` in place of the last `columns.text[0]`: `train_text.txt` and
    `train_label.txt`. Both may be compressed.

    Raises:
        DataError: there is no such file, or it has another number of lines.
    """
    labels = _beside(path, columns)
    pairs = side_by_side(path, labels, encoding, "labels as texts, in the same order")
    for number, (text, label) in enumerate(pairs, 1):
        yield Row(text.removesuffix("\n"), label.strip(), path, number)


def _beside(path: Path, columns: Columns) -> Path:
    name = unpacked_name(path)
    (text,) = columns.text
    before, found, after = name.rpartition(text)
    if not (found and text):
        raise DataError(
            f"{path}: its name does not hold {text!r} (data.text); with data.format=parallel, the file of the "
            f"labels has {columns.label!r} (data.label) in its place, as train_text.txt and train_label.txt"
        )
    plain = path.with_name(f"{before}{columns.label}{after}")
    for file in (plain, *(plain.with_name(plain.name + suffix) for suffix in (".gz", ".xz"))):
        if file.is_file():
            return file
    raise DataError(
        f"{path}: expected its labels, one a line, in {plain} (or .gz, .xz), which is not there; data.text "
        f"({text!r}) and data.label ({columns.label!r}) say which part of the name differs"
    )
