"""Trees in brackets, as JSON, and as CoNLL-U dependencies; writing trees with new labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

from everstep.data.readers.dependencies import Dependencies, dependencies
from everstep.data.readers.trees import LabelledTree, bracketed
from everstep.data.text.text_files import file_lines
from everstep.errors import DataError
from everstep.storage.reading import json_text, parse_json

Format = Literal["brackets", "jsonl", "conllu"]
AnyTree: TypeAlias = LabelledTree | Dependencies
_SUFFIXES: dict[str, Format] = {".conllu": "conllu", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def read_any_trees(paths: Sequence[Path], format: Format | None = None, encoding: str = "utf-8") -> list[AnyTree]:
    """The trees of files (plain, `.gz`, `.xz`), in order.

    - `brackets`: `(3 (2 a) (4 film))`, see `everstep.data.readers.trees`.
    - `jsonl`: one tree per line, `{"label": "3", "children": [{"label": "2", "word": "a"}, …]}`; a node has a word,
      children or both, and may have a label, a string or a number.
    - `conllu`: dependencies, see `everstep.data.readers.dependencies`.

    Args:
        paths: the files.
        format: the format of all files; None: by name, else by the first line.
        encoding: encoding of all files.

    Raises:
        DataError: a file cannot be read, with file and line, or holds no tree.

    Example:
        >>> path = getfixture("tmp_path") / "a.jsonl"
        >>> _ = path.write_text('{"label": 3, "children": [{"word": "a"}, {"label": 4, "word": "film"}]}')
        >>> read_any_trees([path])[0].labels
        ('', '4', '3')
    """
    found: list[AnyTree] = []
    for path in paths:
        lines: Iterator[str] = iter(file_lines(path, encoding))
        chosen, lines = (format, lines) if format else format_of(path.name, lines)
        before = len(found)
        found += trees_in(lines, chosen, str(path))
        if len(found) == before:
            raise DataError(f"{path}: holds no tree; expected trees in the format {chosen}")
    return found


def format_of(name: str, lines: Iterator[str]) -> tuple[Format, Iterator[str]]:
    """The format of a file, by its name or its first line that is not blank, and all its lines."""
    plain = re.sub(r"\.(gz|xz)$", "", name).lower()
    for suffix, known in _SUFFIXES.items():
        if plain.endswith(suffix):
            return known, lines
    head = []
    for line in lines:
        head.append(line)
        if start := line.strip(" \t\r\n\ufeff")[:1]:
            rest: Format = "conllu" if start == "#" or "\t" in line.strip() else "brackets"
            return "jsonl" if start == "{" else "brackets" if start == "(" else rest, chain(head, lines)
    return "brackets", iter(head)


def trees_in(lines: Iterable[str], format: Format, name: str) -> Iterator[AnyTree]:
    """Yield the trees in `lines`.

    Raises:
        DataError: a line cannot be read; the message names it.
    """
    readers: dict[Format, Callable[[Iterable[str], str], Iterator[AnyTree]]] = {
        "brackets": bracketed,
        "jsonl": _json_trees,
        "conllu": dependencies,
    }
    return readers[format](lines, name)


def relabelled(tree: LabelledTree, labels: Sequence[str], format: Format) -> str:
    """A tree as a line of `brackets` or `jsonl`, with new labels.

    >>> from everstep.data import parse_tree
    >>> relabelled(parse_tree("(3 (2 a) (4 (film)))"), ["x", "y", "z"], "brackets")
    Traceback (most recent call last):
    ...
    everstep.errors.DataError: the string, line 1: the node (film) is empty; expected a word or children after its ...
    >>> relabelled(parse_tree("(3 (2 a) (4 film))"), ["x", "y", "z"], "brackets")
    '(z (x a) (y film))'
    """
    written: list[Any] = []
    for label, word, children in zip(labels, tree.words, tree.children, strict=True):
        below = [written[child] for child in children]
        if format == "jsonl":
            parts = [f'"label": {json_text(label)}']
            parts += [f'"word": {json_text(word, ensure_ascii=False)}'] if word is not None else []
            parts += [f'"children": [{", ".join(below)}]'] if below else []
            written.append("{" + ", ".join(parts) + "}")
        else:
            written.append(f"({' '.join([label, *([] if word is None else [_escaped(word)]), *below])})")
        for child in children:  # freed here, or the text of a deep tree would be kept once per node
            written[child] = None
    return str(written[-1])


def _escaped(word: str) -> str:
    return word.replace("(", "-LRB-").replace(")", "-RRB-")


def _json_trees(lines: Iterable[str], name: str) -> Iterator[LabelledTree]:
    for number, line in enumerate(lines, 1):
        if line.strip(" \t\r\n\ufeff"):
            yield _json_tree(line, f"{name}, line {number}", number)


def _json_tree(line: str, where: str, number: int) -> LabelledTree:
    try:
        root = parse_json(line)
    except (ValueError, RecursionError) as error:
        told = "is too deep" if isinstance(error, RecursionError) else f"is no JSON ({error})"
        raise DataError(f"{where}: {told}; expected one tree a line: {line[:60]!r}") from None
    labels: list[str] = []
    words: list[str | None] = []
    children: list[tuple[int, ...]] = []
    spans: list[tuple[int, int]] = []
    stack: list[tuple[dict[str, Any], list[Any], list[int], int]] = []
    leaves = 0

    def begin(node: Any) -> None:
        stack.append((*_checked(node, where), [], leaves))

    begin(root)
    while stack:
        node, waiting, done, first = stack[-1]
        if waiting:
            begin(waiting.pop())
            continue
        stack.pop()
        word = node.get("word")
        leaves += word is not None
        labels.append(str(node.get("label", "")))
        words.append(word)
        children.append(tuple(done))
        spans.append((first, leaves))
        if stack:
            stack[-1][2].append(len(labels) - 1)
    return LabelledTree(tuple(labels), tuple(words), tuple(children), tuple(spans), number)


def _checked(node: Any, where: str) -> tuple[dict[str, Any], list[Any]]:
    """A validated node, and its children in reverse order."""
    if not isinstance(node, dict):
        raise DataError(f'{where}: expected a node, {{"label": …, "word": … or "children": […]}}, got {_short(node)}')
    word, below, label = node.get("word"), node.get("children", []), node.get("label", "")
    if not isinstance(below, list):
        raise DataError(f'{where}: expected a list at "children", got {_short(below)}')
    if word is None and not below:
        raise DataError(f"{where}: a node has neither a word nor children: {_short(node)}")
    if word is not None and not (isinstance(word, str) and word.strip()):
        raise DataError(f'{where}: expected a word as text at "word", got {_short(word)}')
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise DataError(f'{where}: expected text or a number at "label", got {_short(label)}')
    return node, below[::-1]


def _short(value: Any) -> str:
    return json_text(value)[:60]
