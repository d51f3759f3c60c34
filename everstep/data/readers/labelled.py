"""Labelled texts from tables, JSON lines, fastText's format or a folder per class.

Unusable input is an error before any work, with file and line. Texts without a word are skipped and counted. Legal but
suspicious input gives a note.
"""

from __future__ import annotations

import difflib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.labelled_formats import rows
from everstep.data.readers.labelled_rows import Columns, Row, Skipped
from everstep.data.text.text_files import expand
from everstep.errors import DataError, counted

Format = Literal["auto", "tsv", "csv", "jsonl", "fasttext", "lines", "parallel", "folder"]
_UNFIT = re.compile("[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")  # a line of predictions cannot hold these


@dataclass(frozen=True)
class Labelled:
    """Texts, each with its class.

    Attributes:
        texts: the texts, in the order of the files.
        labels: the class name of each text, exactly as written.
        skipped: number of lines or files skipped, by reason.
        notes: possible mistakes in the data, as sentences.
    """

    texts: list[str]
    labels: list[str]
    skipped: dict[str, int]
    notes: list[str]
    _files: list[Path]
    _file: array[int]  # for each text, the index in _files
    _line: array[int]  # for each text, its first line; 0 if the whole file is one text

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted as text (so "10" precedes "2"); the id of a class is its index here."""
        return tuple(sorted(set(self.labels)))

    def place(self, index: int) -> str:
        """The source of text `index` for messages, as `train.tsv, line 7`; in a folder of classes, the file alone."""
        path, line = self._files[self._file[index]], self._line[index]
        return f"{path}, line {line}" if line else str(path)

    def ids(self, classes: Sequence[str] | None = None) -> NDArray[np.int64]:
        """The labels as indices into `classes` (by default `self.classes`): (N,) int64.

        Raises:
            DataError: a label is not in `classes`; the message names the first such text and the nearest class.
        """
        names = self.classes if classes is None else classes
        places = {name: number for number, name in enumerate(names)}
        unknown = {label for label in set(self.labels) if label not in places}
        if unknown:
            raise DataError(self._unknown(unknown, list(places)))
        return np.fromiter((places[label] for label in self.labels), np.int64, len(self.labels))

    def select(self, indices: Iterable[int]) -> Labelled:
        """The texts with these indices, in this order. `skipped` and `notes` are not passed on."""
        kept = [int(index) for index in indices]
        return Labelled(
            [self.texts[index] for index in kept],
            [self.labels[index] for index in kept],
            {},
            [],
            self._files,
            array("I", (self._file[index] for index in kept)),
            array("Q", (self._line[index] for index in kept)),
        )

    def held_out(self, share: float, seed: int, alike: bool = True) -> tuple[Labelled, Labelled]:
        """A random split into (rest, held out), with about `share` of each class held out; both keep their order.

        Of a class with n texts, round(share · n) are held out, but never all of them. If that gives none at all, one
        text of the largest class is held out. With `alike` false, the split ignores classes.

        Raises:
            DataError: no class has two texts.
        """
        random = np.random.default_rng(seed)
        ids = self.ids() if alike else np.zeros(len(self), np.int64)
        members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
        sizes = [min(round(share * len(of_class)), len(of_class) - 1) for of_class in members]
        if not any(sizes):
            largest = max(range(len(members)), key=lambda number: len(members[number]))
            sizes[largest] = min(1, len(members[largest]) - 1)
        drawn = [random.permutation(of_class)[:size] for of_class, size in zip(members, sizes, strict=True)]
        out = np.zeros(len(self), bool)
        out[np.concatenate(drawn)] = True
        if not out.any():
            raise DataError(
                f"{self.place(0)}: no class has two texts, so that none can be held out; give "
                "data.valid, or train without validation: data.valid_fraction=0"
            )
        return self.select(np.flatnonzero(~out)), self.select(np.flatnonzero(out))

    def fold(self, number: int, count: int, alike: bool = True) -> tuple[Labelled, Labelled]:
        """A split for cross-validation into (the other folds, fold `number` of 1 … `count`); both keep their order.

        The same arguments give the same split. The texts of each class are shuffled and dealt to the folds in turn, so
        that the sizes of folds, in total and per class, differ by one text at most. With `alike` false, the split
        ignores classes.

        Raises:
            DataError: there are fewer texts than folds.

        Example:
            >>> ten = Labelled(list("abcdefghij"), ["x", "y"] * 5, {}, [], [Path("f")], array("I", [0] * 10),
            ...     array("Q", range(10)))
            >>> [len(ten.fold(number, 3)[1]) for number in (1, 2, 3)]
            [4, 3, 3]
        """
        if len(self) < count:
            raise DataError(f"{self.place(0)}: expected at least one text a fold, got {len(self)} for {count} folds")
        random = np.random.default_rng(0)
        ids = self.ids() if alike else np.zeros(len(self), np.int64)
        by_class = np.argsort(ids[shuffled := random.permutation(len(self))], kind="stable")
        dealt = np.empty(len(self), np.int64)
        dealt[shuffled[by_class]] = np.arange(len(self)) % count
        return self.select(np.flatnonzero(dealt != number - 1)), self.select(np.flatnonzero(dealt == number - 1))

    def _unknown(self, unknown: set[str], names: list[str]) -> str:
        first = next(index for index, label in enumerate(self.labels) if label in unknown)
        label, shown = self.labels[first], ", ".join(map(repr, names[:5]))
        near = difflib.get_close_matches(label, names, n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        more = f" (and {len(unknown) - 1} more such classes)" if len(unknown) > 1 else ""
        return (
            f"{self.place(first)}: the class {label!r}{more} is not among the {len(names)} known classes: "
            f"{shown}{', …' if len(names) > 5 else ''}{hint}; correct the label, or train with examples of it"
        )


def read_labelled(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    text: str | tuple[str, str] = "text",
    label: str = "label",
    label_separator: str | None = None,
    encoding: str = "utf-8",
    format: Format = "auto",
    fewest_classes: int = 2,
) -> Labelled:
    """Labelled texts from files (plain, `.gz`, `.xz`), globs, bundled names (see `expand`) or folders.

    - `tsv`: columns separated by tabs, one row per line; quotation marks have no special meaning.
    - `csv`: columns separated by commas; a quoted field may hold commas, newlines and doubled quotes.
    - `jsonl`: one JSON object per line. A text is a string; a label is a string or a number.
    - `fasttext`: `__label__NAME the text`, one label per line.
    - `lines`: one text per line; the file name gives the class: `mpqa.pos` gives pos, `spam.txt` gives spam.
    - `parallel`: one text per line; labels are the lines of a second file, whose name has `label` in place of the last
      `text`.
    - `folder`: a folder of folders, one per class, in which each file is one text.

    In a table the first line names the columns. Columns may also be given by number, from 0; if both are, the first
    line is data. A byte-order mark, Windows line ends and blank lines are accepted.

    Args:
        paths: names, globs or folders; read in the given order.
        text: column or key of the texts; or two, whose texts are joined by a tab (white space inside becomes spaces).
        label: column or key of the labels.
        label_separator: separator of labels, if a text may have any number of them: `labels` holds them as written;
            a JSON list and several `__label__NAME` are joined with it. None: every text has exactly one.
        encoding: encoding of all files.
        format: `auto` takes `folder` for a folder, and for a file decides by its name (`.tsv`, `.tab`, `.csv`,
            `.jsonl`, `.ndjson`) or else by its first line.
        fewest_classes: least number of classes; 1 for data that is only evaluated.

    Raises:
        DataError: a file is missing, empty, damaged or in another encoding; a line is ragged, has an unclosed quote, is
            not a JSON object or lacks a column; a label is missing, empty, holds a tab or a line break, or there are
            several; no text is left; there are fewer classes than `fewest_classes`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "reviews.tsv")
        ...     _ = path.write_text("text\\tlabel\\ngood fun\\tpos\\ndull\\tneg\\n")
        ...     read = read_labelled(path)
        >>> read.texts, read.classes, read.ids().tolist()
        (['good fun', 'dull'], ('neg', 'pos'), [1, 0])
    """
    if format not in get_args(Format):
        raise DataError(f"data.format={format!r}: expected one of {', '.join(get_args(Format))}")
    named = [paths] if isinstance(paths, str | os.PathLike) else paths
    files = expand([os.fspath(path) for path in named], folders=True)
    columns = Columns((text,) if isinstance(text, str) else tuple(text), label, label_separator)
    read = _Reading(label_separator is not None)
    for path in files:
        read.extend(rows(path, columns, encoding, format))
    return read.result(files, fewest_classes if label_separator is None else 1)


def labelled_of(
    found: Iterable[Row | Skipped],
    files: list[Path],
    label_separator: str | None = None,
    fewest_classes: int = 2,
    unit: str = "text",
) -> Labelled:
    """Examples of rows that another reader found, with the checks of `read_labelled`; `unit` names one in messages.

    Raises:
        DataError: as `read_labelled`.
    """
    read = _Reading(label_separator is not None)
    read.extend(found)
    return read.result(files, fewest_classes if label_separator is None else 1, unit)


class _Reading:
    """The rows read so far."""

    def __init__(self, several: bool):
        self._several = several  # whether a text may have any number of labels
        self._texts: list[str] = []
        self._labels: list[str] = []
        self._known: dict[str, str] = {}  # interned class names, so that a million labels are few strings
        self._skipped: Counter[str] = Counter()
        self._files: list[Path] = []
        self._file, self._line = array("I"), array("Q")

    def extend(self, found: Iterable[Row | Skipped]) -> None:
        for row in found:
            if isinstance(row, Skipped):
                self._skipped[row.reason] += 1
                continue
            label = self._known.get(row.label)
            if label is None:
                label = self._known[row.label] = _checked(row, self._several)
            if not row.text or row.text.isspace():
                self._skipped["empty text"] += 1
                continue
            if not self._files or self._files[-1] != row.path:
                self._files.append(row.path)
            self._texts.append(row.text)
            self._labels.append(label)
            self._file.append(len(self._files) - 1)
            self._line.append(row.line)

    def result(self, files: list[Path], fewest_classes: int, unit: str = "text") -> Labelled:
        names = ", ".join(map(str, files[:3])) + (", …" if len(files) > 3 else "")
        if not self._texts:
            left_out = ", ".join(f"{count} × {reason}" for reason, count in self._skipped.items())
            raise DataError(f"{names}: no labelled {unit}" + (f"; left out: {left_out}" if left_out else ""))
        counts = Counter(self._labels)
        if len(counts) < fewest_classes:
            only = ", ".join(map(repr, counts))
            raise DataError(
                f"{names}: expected at least {fewest_classes} classes, got {len(counts)}: {only} "
                f"(of {counted(len(self._texts), unit)}); is data.label the right column?"
            )
        return Labelled(
            self._texts,
            self._labels,
            dict(self._skipped),
            _notes(counts),
            self._files,
            self._file,
            self._line,
        )


def _checked(row: Row, several: bool) -> str:
    """The class name of a row, validated.

    Raises:
        DataError: it is empty, or a line of predictions could not hold it.
    """
    where = f"{row.path}, line {row.line}" if row.line else str(row.path)
    if not several and (not row.label or row.label.isspace()):
        raise DataError(f"{where}: the label is empty; expected the name of a class; label the text or remove it")
    if _UNFIT.search(row.label):
        raise DataError(
            f"{where}: the class name {row.label[:60]!r} holds a tab, a line break or half a surrogate pair; expected "
            "one line of text, since predictions are written as label<TAB>probability; is data.label the right column?"
        )
    return row.label


def _notes(counts: Counter[str]) -> list[str]:
    """Notes on class names that differ only in case or surrounding spaces."""
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(name.strip().casefold(), []).append(name)
    notes = []
    for names in alike.values():
        if len(names) > 1:
            told = ", ".join(f"{name!r} ({counts[name]})" for name in sorted(names))
            notes.append(f"these classes differ by case or by spaces around them alone: {told}; are they one?")
    return notes
