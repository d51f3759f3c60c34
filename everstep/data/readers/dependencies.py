"""Dependency trees in CoNLL-U: one word per line, with the number of its head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from everstep.errors import DataError

_LABEL = re.compile(r"#\s*label\s*=\s*(.*?)\s*$")
_WORD = re.compile(r"[1-9][0-9]*")
_NO_WORD = re.compile(r"[0-9]+([-.])[0-9]+")  # multiword tokens and empty nodes


@dataclass(frozen=True)
class Dependencies:
    """The dependency tree of a sentence of N words: every word is a node, and its head is its parent.

    Attributes:
        words: N words in sentence order.
        heads: for each word, the index of its head; −1 for the root.
        tags: the UPOS tag of each word.
        relations: the relation of each word to its head.
        children: for each word, the indices of its dependents, in sentence order.
        label: the label of the sentence, from a comment `# label = …`; "" if there is none.
        line: the first line of the sentence in the file, from 1.
    """

    words: tuple[str, ...]
    heads: tuple[int, ...]
    tags: tuple[str, ...]
    relations: tuple[str, ...]
    children: tuple[tuple[int, ...], ...]
    label: str = ""
    line: int = 1

    def __len__(self) -> int:
        return len(self.words)

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each node: the sentence's for the root, "" for the others."""
        return tuple(self.label if head < 0 else "" for head in self.heads)

    @property
    def leaves(self) -> list[str]:
        """The words in sentence order."""
        return list(self.words)


def dependencies(lines: Iterable[str], name: str) -> Iterator[Dependencies]:
    """Yield the sentences of CoNLL-U lines.

    Multiword tokens (`3-4`) and empty nodes (`8.1`) are skipped, since they have no head.

    Args:
        lines: ten columns separated by tabs, with a blank line after each sentence.
        name: name of the source, for messages.

    Raises:
        DataError: a line is not a word of CoNLL-U, ids are out of order, a head is not a word, there is not exactly one
            root, or heads form a cycle; the message names the line.

    Example:
        >>> lines = ["# label = good", *("\\t".join(row) for row in (
        ...     ["1", "Birds", "_", "NOUN", "_", "_", "2", "nsubj", "_", "_"],
        ...     ["2", "sing", "_", "VERB", "_", "_", "0", "root", "_", "_"]))]
        >>> (tree,) = dependencies(lines, "example")
        >>> tree.words, tree.heads, tree.children, tree.label
        (('Birds', 'sing'), (1, -1), ((), (0,)), 'good')
    """
    rows: list[tuple[int, list[str]]] = []
    label, start = "", 0
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n").lstrip("\ufeff")
        if not line.strip():
            if rows:
                yield _sentence(rows, label, start, name)
            rows, label, start = [], "", 0
        elif line.startswith("#"):
            found = _LABEL.match(line)
            label = found.group(1) if found else label
        else:
            start = start or number
            row = line.split("\t")
            if not _NO_WORD.fullmatch(row[0]):
                rows.append((number, _row(row, len(rows) + 1, f"{name}, line {number}")))
    if rows:
        yield _sentence(rows, label, start, name)


def _row(row: list[str], expected: int, where: str) -> list[str]:
    if len(row) != 10:
        raise DataError(f"{where}: expected ten columns separated by tabs, as CoNLL-U has, got {len(row)}")
    if row[0] != str(expected):
        raise DataError(f"{where}: expected word number {expected}, got {row[0]!r}")
    if not row[1].strip():
        raise DataError(f"{where}: the word is empty")
    if row[6] != "0" and not _WORD.fullmatch(row[6]):
        raise DataError(f"{where}: expected the number of a head (column 7), got {row[6]!r}")
    return row


def _sentence(rows: list[tuple[int, list[str]]], label: str, start: int, name: str) -> Dependencies:
    heads = [int(row[6]) - 1 for _, row in rows]
    for (number, _), head in zip(rows, heads, strict=True):
        if head >= len(rows):
            raise DataError(f"{name}, line {number}: the head {head + 1} is none of the sentence's {len(rows)} words")
    roots = [number for (number, _), head in zip(rows, heads, strict=True) if head < 0]
    if len(roots) != 1:
        where = f"lines {', '.join(map(str, roots))}" if roots else "no word"
        raise DataError(
            f"{name}, line {start}: expected one root in the sentence that starts here, found it at {where}"
        )
    children: list[list[int]] = [[] for _ in rows]
    for word, head in enumerate(heads):
        if head >= 0:
            children[head].append(word)
    reached, ahead = 0, [heads.index(-1)]
    while ahead:
        reached += 1
        ahead += children[ahead.pop()]
    if reached < len(rows):
        raise DataError(
            f"{name}, line {start}: words of the sentence that starts here depend on each other in a circle"
        )
    columns = [tuple(row[place] for _, row in rows) for place in (1, 3, 7)]
    words, tags, relations = columns
    return Dependencies(words, tuple(heads), tags, relations, tuple(map(tuple, children)), label, start)
