"""Tagged sentences in any format: columns, CoNLL-U, JSON lines, plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from everstep.data.readers.tagged_columns import Sentence, TagColumns, read_columns
from everstep.data.text.words import words
from everstep.errors import DataError
from everstep.storage.reading import json_text, parse_json

Format = Literal["columns", "conllu", "jsonl", "text"]
PREDICTED = "predicted"
"""The key for predictions if the key of the tags is taken."""
_SUFFIXES: dict[str, Format] = {".conllu": "conllu", ".conllup": "conllu", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_DEFAULTS: dict[Format, TagColumns] = {
    "columns": TagColumns(0, (-1,)),
    "conllu": TagColumns("form", ("upos",)),
    "jsonl": TagColumns("tokens", ("tags",)),
    "text": TagColumns(0, ()),
}
_FIRST = re.compile(r"1(-[0-9]+)?(\t[^\t]*){9}")


def columns_of(
    format: Format,
    word: int | str | None,
    tags: Sequence[int | str] | int | str | None,
    features: Sequence[int | str],
) -> TagColumns:
    """The columns, with defaults by format for None: 0 and −1; form and upos; tokens and tags.

    Example:
        >>> columns_of("conllu", None, ["upos", "xpos"], []).word
        'form'
    """
    default = _DEFAULTS[format]
    chosen = default.tags if tags is None else (tags,) if isinstance(tags, int | str) else tuple(tags)
    return TagColumns(default.word if word is None else word, chosen, tuple(features))


def format_of(name: str, lines: Iterator[str]) -> tuple[Format, Iterator[str]]:
    """The format of a file, by its name or its first line that is neither blank nor a comment, and all its lines."""
    plain = re.sub(r"\.(gz|xz)$", "", name)
    for suffix, known in _SUFFIXES.items():
        if plain.lower().endswith(suffix):
            return known, lines
    head: list[str] = []
    found: Format = "columns"
    for line in lines:
        head.append(line)
        if line.strip(" \t\ufeff") and not line.startswith("#"):
            found = "jsonl" if line.lstrip().startswith("{") else "conllu" if _FIRST.match(line) else "columns"
            break
    return found, chain(head, lines)


def read_sentences(
    lines: Iterable[str],
    format: Format,
    columns: TagColumns,
    source: str,
    *,
    separator: str | None = None,
    comments: bool = True,
    alone: str = "\t",
    words_only: bool = False,
) -> Iterator[Sentence]:
    """Yield the sentences of one file, given its lines without line ends.

    - `columns`, `conllu`: see `read_columns`.
    - `jsonl`: one object per line, with lists of words, tags and features of equal length.
    - `text`: one sentence per line, split into words by `everstep.data.text.words`; it has no tags.

    Raises:
        DataError: a line cannot be read; the message names it.
    """
    if format == "text":
        return _text(lines)
    if format == "jsonl":
        return _json_lines(lines, columns, source, words_only)
    return read_columns(
        lines,
        columns,
        source,
        separator=separator,
        conllu=format == "conllu",
        comments=comments,
        alone=alone,
        words_only=words_only,
    )


def _text(lines: Iterable[str]) -> Iterator[Sentence]:
    for number, line in enumerate(lines, 1):
        found = words(line)
        yield Sentence(found, numbers=[number] * len(found), lines=[*found, ""], places=range(len(found)))


def _json_lines(lines: Iterable[str], columns: TagColumns, source: str, words_only: bool) -> Iterator[Sentence]:
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t\ufeff"):
            yield Sentence([], lines=[line])
            continue
        where = f"{source}, line {number}"
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: is no JSON ({error}); expected one object a line: {line[:60]!r}") from None
        if not isinstance(entry, dict):
            raise DataError(f'{where}: expected an object, {{"tokens": […], "tags": […]}}, got {line[:60]!r}')
        found = _strings(where, entry, columns.word, None)
        if any(not word.strip() for word in found):
            raise DataError(f"{where}: expected words, got an empty one")
        tags = () if words_only else columns.tags
        yield Sentence(
            found,
            tuple(_strings(where, entry, key, len(found)) for key in tags),
            tuple(_strings(where, entry, key, len(found)) for key in columns.features),
            numbers=[number] * len(found),
            lines=[line],
        )


def _strings(where: str, entry: dict[str, Any], key: int | str, length: int | None) -> list[str]:
    """The list of strings at a key, which must have `length` entries."""
    if key not in entry:
        came = ", ".join(map(repr, list(entry)[:20])) or "none"
        raise DataError(f"{where}: expected a key {key!r}, got {came}; set data.word_column or data.tag_column")
    values = entry[str(key)]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: expected a list of texts at {key!r}, got {json_text(values)[:60]}")
    if any("\ud800" <= character <= "\udfff" for value in values for character in value):
        raise DataError(f"{where}: half a surrogate pair (\\ud800 … \\udfff) at {key!r} is no character")
    if length is not None and len(values) != length:
        raise DataError(f"{where}: expected one of {key!r} for each of {length} words, got {len(values)}")
    return values


def with_tags(sentence: Sentence, format: Format, added: dict[str, list[str]], outside: str) -> str:
    """A sentence in its original form with entries added to each word, as text without the last line end.

    Args:
        sentence: a sentence from `read_sentences`.
        format: the format it was read in.
        added: lists of N entries by name. In JSON the name is the key; if it is taken, the first list is written at
            `predicted`, another at `predicted_NAME`.
        outside: the entry for a document mark.
    """
    if format != "jsonl":
        return "\n".join(sentence.with_columns(added, outside))
    (line,) = sentence.lines
    if not line.strip(" \t\ufeff"):
        return line
    entry = parse_json(line)
    for number, (name, values) in enumerate(added.items()):
        taken = PREDICTED if number == 0 else f"{PREDICTED}_{name}"
        entry[taken if name in entry else name] = values
    return json.dumps(entry, ensure_ascii=False, allow_nan=False)
