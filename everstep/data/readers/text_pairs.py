"""Read pairs of a text and its translation from two parallel files, TSV or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from everstep.data.readers.json_array import array_entries, beginning
from everstep.data.readers.labelled_rows import side_by_side, text_lines, unpacked_name
from everstep.data.text.text_files import decoded, expand, filled_in
from everstep.errors import DataError
from everstep.storage.reading import json_text

Format = Literal["auto", "files", "tsv", "jsonl"]
Side = int | str
"""A language: the suffix of a file, the name of a column or key, or the number of a column from 0."""
_SUFFIXES = {".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_PACKED = ("", ".gz", ".xz")
_SPACE = str.maketrans("\n\t\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " " * 11)


class Pair(NamedTuple):
    """A text and its translation, one line each, with their position: the source file and the line number from 1."""

    source: str
    target: str
    path: Path
    line: int

    @property
    def texts(self) -> tuple[str, str]:
        """The text and its translation."""
        return self.source, self.target


class PairFiles(NamedTuple):
    """The files of pairs: two parallel files, or one file (`target` is None) with both texts in each row."""

    source: Path
    target: Path | None
    format: str


def found_pairs(names: str | Sequence[str], source: Side, target: Side, format: Format = "auto") -> list[PairFiles]:
    """Find the files of each name without reading them.

    A name is the prefix of two files, PREFIX.SOURCE and PREFIX.TARGET, each plain, `.gz` or `.xz`. Or it is one file
    with both texts in every row, a glob of such files, or a bundled text.

    Raises:
        DataError: a file does not exist, or only one of the two exists.
    """
    return [
        found
        for name in ([names] if isinstance(names, str) else names)
        for found in _found(name, source, target, format)
    ]


def read_pairs(found: Sequence[PairFiles], source: Side, target: Side, encoding: str = "utf-8") -> Iterator[Pair]:
    """Read the pairs in the order of the files, one block of text at a time.

    - two files: line i of one is the translation of line i of the other.
    - `tsv`: tab-separated columns; the first row is a header, unless both columns are given by number.
    - `jsonl`: one object per line with both texts as keys, or with both under the key "translation", the format of
      Hugging Face data sets; or one array of such objects, which may be of any size. `Pair.line` is then the number of
      the entry.

    A byte-order mark, Windows line ends and blank lines are accepted. Other white space in a text becomes spaces.

    Raises:
        DataError: a file cannot be read, two files differ in their number of lines, or a row lacks one of the texts.
    """
    for one in found:
        if one.target is not None:
            yield from _two_files(one.source, one.target, encoding)
            continue
        format = one.format
        if _is_array(one, encoding):
            yield from _array(one.source, encoding, source, target)
            continue
        lines = text_lines(one.source, encoding)
        if format == "auto":
            first = next(lines, "")
            format, lines = _guessed(one.source, first, source, target), chain([first], lines)
        yield from (_tsv if format == "tsv" else _jsonl)(one.source, lines, source, target)


def one_line(text: str) -> str:
    """The text with line breaks, tabs and other separators replaced by spaces, without leading and trailing spaces."""
    return text.translate(_SPACE).strip(" ")


def _found(name: str, source: Side, target: Side, format: Format) -> Iterator[PairFiles]:
    sides = [_file(name, side) if format in ("auto", "files") else None for side in (source, target)]
    if any(sides) or format == "files":
        if missing := [side for side, path in zip((source, target), sides, strict=True) if path is None]:
            tried = ", ".join(f"{name}.{side}" for side in missing)
            raise DataError(
                f"{name}: expected two files, {name}.{source} and {name}.{target} (data.source, data.target; or .gz, "
                f".xz); there is no {tried}"
            )
        yield PairFiles(Path(str(sides[0])), Path(str(sides[1])), "files")
        return
    try:
        paths = expand(name)
    except DataError as error:
        raise DataError(
            f"{error}; expected a table or JSON lines, or the beginning of two files, {name}.{source} and "
            f"{name}.{target} (data.source, data.target)"
        ) from None
    for path in paths:
        yield PairFiles(
            path, None, _SUFFIXES.get(Path(unpacked_name(path)).suffix, "auto") if format == "auto" else format
        )


def _file(name: str, side: Side) -> str | None:
    if name.startswith("everstep:"):
        return None
    tried = (f"{filled_in(name)}.{side}{suffix}" for suffix in _PACKED)
    return next((path for path in tried if Path(path).is_file()), None)


def _is_array(found: PairFiles, encoding: str) -> bool:
    """Whether a file is one JSON array; a line of a table may begin with `[` too, but hardly with `[{`."""
    if found.format not in ("auto", "jsonl"):
        return False
    begin = beginning(text for text, _ in decoded(found.source, encoding))
    return begin in ("[{", "[]") or (begin[:1] == "[" and found.format == "jsonl")


def _two_files(source: Path, target: Path, encoding: str) -> Iterator[Pair]:
    both = side_by_side(source, target, encoding, "lines in both, where those of one number mean the same")
    for number, (one, other) in enumerate(both, 1):
        yield Pair(one_line(one), one_line(other), source, number)


def _guessed(path: Path, first: str, source: Side, target: Side) -> str:
    if first.lstrip().startswith("{"):
        return "jsonl"
    if "\t" in first:
        return "tsv"
    raise DataError(
        f"{path}: cannot tell its format by its name ({', '.join(_SUFFIXES)}) nor by its first line, {first[:60]!r} (a "
        f"JSON object, or columns separated by tabs); set data.format, or name the prefix of two files that end in "
        f".{source} and .{target}"
    )


def _tsv(path: Path, lines: Iterator[str], source: Side, target: Side) -> Iterator[Pair]:
    places: list[int] = []
    for number, line in enumerate(lines, 1):
        fields = line.removesuffix("\n").split("\t")
        if not places:
            named = not all(str(side).isdecimal() for side in (source, target))
            places = [_column(path, fields, side, named) for side in (source, target)]
            if named:
                continue
        if line.isspace():
            yield Pair("", "", path, number)
            continue
        if len(fields) <= max(places):
            raise DataError(
                f"{path}, line {number}: expected {max(places) + 1} columns or more, separated by tabs, got "
                f"{len(fields)}: {line[:60].strip()!r}"
            )
        one, other = (one_line(fields[place]) for place in places)
        yield Pair(one, other, path, number)


def _column(path: Path, fields: list[str], side: Side, named: bool) -> int:
    if named and fields.count(str(side)) == 1:
        return fields.index(str(side))
    if str(side).isdecimal():
        return int(side)
    names = ", ".join(repr(name[:40]) for name in fields[:20])
    raise DataError(
        f"{path}, line 1: expected a header that names a column {str(side)!r}, got {names}; name the columns "
        "(data.source=… data.target=…), or count them from 0 where there is no header: data.source=0 data.target=1"
    )


def _jsonl(path: Path, lines: Iterator[str], source: Side, target: Side) -> Iterator[Pair]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            yield Pair("", "", path, number)
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is no JSON ({error}); expected one object a line: {line[:60].strip()}") from None
        yield Pair(_value(where, entry, str(source)), _value(where, entry, str(target)), path, number)


def _array(path: Path, encoding: str, source: Side, target: Side) -> Iterator[Pair]:
    for number, entry in array_entries((text for text, _ in decoded(path, encoding)), str(path)):
        where = f"{path}, entry {number}"
        yield Pair(_value(where, entry, str(source)), _value(where, entry, str(target)), path, number)


def _value(where: str, entry: Any, key: str) -> str:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, got {json_text(entry)[:60]}")
    inside = entry if key in entry else entry.get("translation")
    if not isinstance(inside, dict) or key not in inside:
        names = ", ".join(repr(str(name)[:40]) for name in list(inside if isinstance(inside, dict) else entry)[:20])
        raise DataError(f"{where}: expected a key {key!r} (data.source, data.target), got {names}")
    if not isinstance(inside[key], str):
        raise DataError(f"{where}: expected a string at {key!r}, got {json_text(inside[key])[:60]}")
    check_characters(where, inside[key])
    return one_line(inside[key])


def check_characters(where: str, text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no file can hold.

    Raises:
        DataError: the text has one.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: half a surrogate pair (\\ud800 … \\udfff) is no character; expected Unicode text")
