"""The rows of labelled files, one generator per format; `everstep.data.readers.labelled` combines them."""

from __future__ import annotations

import csv
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from everstep.data.readers.labelled_rows import BLANK, Columns, Row, Skipped, joined, pair, text_lines
from everstep.data.readers.parallel_files import class_of_file, parallel_rows, rows_of_class
from everstep.data.text.text_files import decoded
from everstep.errors import DataError
from everstep.storage.reading import json_text

_PREFIX = "__label__"
_LABEL = re.compile(rf"(?<![^ \t]){_PREFIX}([^ \t]*)")
_SUFFIXES = {".tsv": "tsv", ".tab": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def rows(path: Path, columns: Columns, encoding: str, format: str) -> Iterator[Row | Skipped]:
    """The rows of one file or folder; for `format` see `read_labelled`."""
    if path.is_dir():
        if format not in ("auto", "folder"):
            raise DataError(f"{path}: expected a file (data.format={format}), got a folder")
        _check_columns(path, columns, "folder")
        yield from _folder(path, encoding)
        return
    if format == "folder":
        raise DataError(f"{path}: expected a folder that holds a folder per class (data.format=folder), got a file")
    if format == "parallel":
        _check_columns(path, columns, format)
        yield from parallel_rows(path, columns, encoding)
        return
    lines = text_lines(path, encoding)
    if format == "auto":
        first = next(lines)
        format, lines = _guessed(path, first), chain([first], lines)
    _check_columns(path, columns, format)
    yield from _READERS[format](path, lines, columns)


def _check_columns(path: Path, columns: Columns, format: str) -> None:
    if len(columns.text) > 1 and format not in ("tsv", "csv", "jsonl"):
        raise DataError(f"{path}: expected a table or JSON lines, for two texts (data.text), got the format {format}")


def _guessed(path: Path, first: str) -> str:
    plain = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    known = _SUFFIXES.get(plain.suffix.lower())
    if known:
        return known
    if first.lstrip().startswith("{"):
        return "jsonl"
    if _LABEL.search(first):
        return "fasttext"
    if "\t" in first:
        return "tsv"
    told = ", ".join(_SUFFIXES)
    raise DataError(
        f"{path}: cannot tell its format by its name ({told}) nor by its first line, {first[:60]!r} (a JSON object, "
        f"{_PREFIX}NAME, or columns separated by tabs); set data.format=tsv, csv, jsonl or fasttext"
    )


class _Table:
    """Finds text and label in the rows of a table; the first row names the columns, unless both are numbers."""

    def __init__(self, path: Path, columns: Columns, parted: str):
        self._path, self._columns, self._parted = path, columns, parted
        self._header: list[str] | None = None
        self._width = self._label = 0
        self._texts: list[int] = []
        self._named = not all(column.isdecimal() for column in (*columns.text, columns.label))

    def row(self, fields: list[str], line: int) -> Row | None:
        """A row of the table, or None for the header."""
        if not self._width:
            self._width = len(fields)
            if self._named:
                self._header = fields
            self._texts = [self._place(self._columns.keys[0], column, fields, line) for column in self._columns.text]
            self._label = self._place(self._columns.keys[1], self._columns.label, fields, line)
            if self._named:
                return None
        if len(fields) != self._width:
            raise DataError(self._ragged(fields, line))
        return Row(pair([fields[place] for place in self._texts]), fields[self._label], self._path, line)

    def _place(self, key: str, column: str, fields: list[str], line: int) -> int:
        if self._header is not None and self._header.count(column) == 1:
            return self._header.index(column)
        if self._header is not None and column in self._header:
            raise DataError(f"{self._path}, line {line}: two columns are named {column!r}; set data.{key} to a number")
        if column.isdecimal():
            if int(column) < len(fields):
                return int(column)
            raise DataError(
                f"{self._path}, line {line}: expected a column {column} (data.{key}, counted from 0), "
                f"got {len(fields)} {_columns(len(fields))} separated by {self._parted}"
            )
        raise DataError(self._missing(key, column, fields, line))

    def _missing(self, key: str, column: str, fields: list[str], line: int) -> str:
        one, other = self._columns.keys
        told = ", ".join(map(repr, self._columns.text))
        found = ", ".join(repr(name[:40]) for name in fields[:20])
        near = difflib.get_close_matches(column, fields, n=1) or [
            n for n in fields if n.strip().lower() == column.lower()
        ]
        remedy = f"name the columns (for example data.{key}={near[0] if near else fields[0][:40]!r})"
        if len(fields) == 1:
            remedy += f", or set data.format if they are not separated by {self._parted}"
        else:
            remedy += f"; if the file has no header, count them from 0: data.{one}=0 data.{other}=1"
        return (
            f"{self._path}, line {line}: expected a header with the columns {told} (data.{one}) and "
            f"{self._columns.label!r} (data.{other}), got {len(fields)} {_columns(len(fields))}: {found}; {remedy}"
        )

    def _ragged(self, fields: list[str], line: int) -> str:
        names = f" ({', '.join(map(repr, self._header[:6]))})" if self._header else ""
        remedy = {
            "tabs": "replace tabs and line breaks inside of texts by spaces, or write the file as CSV",
            "commas": 'put texts that hold commas or line breaks in quotation marks: "so, and so"',
        }[self._parted]
        last = fields[-1][:60]
        return (
            f"{self._path}, line {line}: expected {self._width} fields separated by {self._parted}{names}, as in the "
            f"first line, got {len(fields)}, of which the last is {last!r}; {remedy}"
        )


def _columns(count: int) -> str:
    return "column" if count == 1 else "columns"


def _tsv(path: Path, lines: Iterator[str], columns: Columns) -> Iterator[Row | Skipped]:
    table = _Table(path, columns, "tabs")
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n")
        if not line.strip(" "):
            yield Skipped(BLANK)
            continue
        row = table.row(line.split("\t"), number)
        if row is not None:
            yield row


def _csv(path: Path, lines: Iterator[str], columns: Columns) -> Iterator[Row | Skipped]:
    table = _Table(path, columns, "commas")
    reader = csv.reader(lines, strict=True)
    with _long_fields():
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(_bad_quotes(path, start, reader.line_num, str(error))) from None
            if fields is None:
                return
            row = table.row(fields, start) if fields else Skipped(BLANK)
            if row is not None:
                yield row


def _bad_quotes(path: Path, start: int, end: int, reason: str) -> str:
    if "unexpected end" in reason:
        what = "a field opens a quotation mark that the file never closes"
    else:
        what = f"quotation marks do not match ({reason}, in line {end})"
    return (
        f"{path}, line {start}: in the row that starts here {what}; expected a closing mark before a comma or the "
        'end of a line; double the marks inside of a quoted field ("")'
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift Python's limit of 128 KiB per field within the block, since a field may be a whole document."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _jsonl(path: Path, lines: Iterator[str], columns: Columns) -> Iterator[Row | Skipped]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            yield Skipped(BLANK)
            continue
        where = f"{path}, line {number}"
        entry = _json_object(where, line)
        texts = [_json_value(where, entry, columns.keys[0], name) for name in columns.text]
        for name, one in zip(columns.text, texts, strict=True):
            if not isinstance(one, str):
                raise DataError(f"{where}: expected a string at {name!r} (data.{columns.keys[0]}), got {_shown(one)}")
        text, label = (
            pair(texts),
            _json_label(where, _json_value(where, entry, columns.keys[1], columns.label), columns),
        )
        if "\\u" in line and not _is_text(text + label):
            raise DataError(
                f"{where}: half a surrogate pair (\\ud800 … \\udfff) is no character; expected Unicode text"
            )
        yield Row(text, label, path, number)


def _json_label(where: str, found: Any, columns: Columns) -> str:
    several, key = isinstance(found, list), columns.keys[1]
    if several and columns.separator is None:
        raise DataError(
            f"{where}: several labels ({_shown(found)}) at {columns.label!r} (data.{key}); expected one string or "
            'number, or data.label_separator, such as ",", with which a text may have any number of them'
        )
    labels = found if several else [found]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            expected = "strings or numbers" if several else "a string or a number"
            raise DataError(f"{where}: expected {expected} at {columns.label!r} (data.{key}), got {_shown(label)}")
    texts = [label if isinstance(label, str) else json_text(label) for label in labels]
    return texts[0] if columns.separator is None or not several else joined(where, texts, columns.separator)


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        hint = "; a JSON array over many lines is not read" if line.lstrip()[:1] == "[" else ""
        raise DataError(
            f"{where}: is no JSON ({reason}); expected one object a line{hint}: {line[:60].strip()}"
        ) from None
    if not isinstance(entry, dict):
        raise DataError(f'{where}: expected one JSON object, {{"text": …, "label": …}}, got {_shown(entry)}')
    return entry


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _json_value(where: str, entry: dict[str, Any], key: str, name: str) -> Any:
    if name not in entry:
        found = ", ".join(repr(known[:40]) for known in list(entry)[:20]) or "none"
        raise DataError(f"{where}: expected a key {name!r}, got {found}; name the right one: data.{key}=…")
    return entry[name]


def _shown(value: Any) -> str:
    text = json_text(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _fasttext(path: Path, lines: Iterator[str], columns: Columns) -> Iterator[Row | Skipped]:
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\n")
        if not line or line.isspace():
            yield Skipped(BLANK)
            continue
        found = list(_LABEL.finditer(line))
        where, separator = f"{path}, line {number}", columns.separator
        if len(found) != 1 and separator is None:
            came = " ".join(match.group() for match in found[:5]) or repr(line[:60])
            why = "set data.label_separator for several" if found else f"every line needs a label, {_PREFIX}NAME"
            raise DataError(f"{where}: expected one label, got {len(found)}: {came}; {why}")
        label = found[0].group(1) if separator is None else joined(where, [m.group(1) for m in found], separator)
        for match in reversed(found):
            start, end = match.span()
            line = f"{line[:start].rstrip(' ')} {line[end:].lstrip(' ')}" if start else line[end:]
        yield Row(line.strip(" \t"), label, path, number)


def _folder(path: Path, encoding: str) -> Iterator[Row | Skipped]:
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise DataError(
            f"{path}: expected a folder that holds a folder per class, got one with {len(entries)} files and no "
            f"folder; name its files instead, for example {path}/*.tsv"
        )
    for _ in range(len(entries) - len(folders)):
        yield Skipped("file outside of a class's folder")
    for folder in folders:
        inside = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        if not inside:
            raise DataError(f"{folder}: a class's folder without a file; put its texts there, or remove it")
        for file in inside:
            text = "".join(part for part, _ in decoded(file, encoding))
            if "\0" in text:
                raise DataError(f"{file}: holds a NUL byte; expected text")
            yield Row(text.strip("\n"), folder.name, file, 0)


_READERS: dict[str, Callable[[Path, Iterator[str], Columns], Iterator[Row | Skipped]]] = {
    "tsv": _tsv,
    "csv": _csv,
    "jsonl": _jsonl,
    "fasttext": _fasttext,
    "lines": lambda path, lines, _: rows_of_class(path, class_of_file(path), lines),
}
