"""Trees in the brackets of the Penn Treebank, such as those of the Stanford Sentiment Treebank.

`(3 (2 a) (4 (3 lovely) (2 film)))` is a tree: a node is a label with children, or a label with a word. A tree may span
several lines, and a file holds any number of trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from everstep.data.text.text_files import file_lines
from everstep.errors import DataError

_PIECE = re.compile(r"[()]|[^() \t\n]+")  # a no-break space is part of a word
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


class Phrase(NamedTuple):
    """A node of a tree: its label and the words below it."""

    label: str
    words: list[str]


@dataclass(frozen=True)
class LabelledTree:
    """A tree as a table of its nodes, in postorder: children precede their parents, and the root is last.

    So one loop over the nodes computes from the leaves to the root, however deep the tree.

    Attributes:
        labels: the label of each node; "" if it has none (the outermost brackets of the Penn Treebank).
        words: the word of each node; None for a node with children. Escapes (`-LRB-`, `-RRB-`, …, `\\/`, `\\*`) are
            resolved.
        children: the indices of each node's children; `()` for a leaf.
        spans: for each node, (first, last + 1), the range of the words below it in `leaves`.
        line: the first line of the tree in the file, from 1.
    """

    labels: tuple[str, ...]
    words: tuple[str | None, ...]
    children: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[int, int], ...]
    line: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label(self) -> str:
        """The label of the root."""
        return self.labels[-1]

    @property
    def leaves(self) -> list[str]:
        """The words, from left to right."""
        return [word for word in self.words if word is not None]

    def phrases(self) -> Iterator[Phrase]:
        """Every node with the words below it, in postorder; the last is the whole tree.

        Example:
            >>> [" ".join(phrase.words) for phrase in parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))").phrases()]
            ['a', 'lovely', 'film', 'lovely film', 'a lovely film']
        """
        leaves = self.leaves
        for label, (first, last) in zip(self.labels, self.spans, strict=True):
            yield Phrase(label, leaves[first:last])


def read_trees(paths: Sequence[Path], encoding: str = "utf-8") -> list[LabelledTree]:
    """The trees of files (plain, `.gz`, `.xz`), in order.

    Raises:
        DataError: a file cannot be read or holds no tree, brackets do not match, or a node is neither a label with one
            word nor a label with children; the message names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("(3 (2 It) (4 works))\\n(1 (2 It) (1 fails))\\n")
        ...     [tree.label for tree in read_trees([Path(folder, "a.txt")])]
        ['3', '1']
    """
    return [tree for path in paths for tree in _trees(path, encoding)]


def bracketed(lines: Iterable[str], name: str) -> Iterator[LabelledTree]:
    """Yield the trees in `lines`.

    Args:
        lines: any number of trees in brackets, which may span several lines.
        name: name of the source, for messages.

    Raises:
        DataError: as `read_trees`.
    """
    return _parsed(lines, name)


def parse_tree(text: str) -> LabelledTree:
    """Parse a string that holds one tree.

    Raises:
        DataError: as `read_trees`, or there are several trees.
    """
    trees = list(_parsed([text], "the string"))
    if len(trees) != 1:
        raise DataError(f"expected one tree, got {len(trees)}: {text[:60]!r}")
    return trees[0]


def _trees(path: Path, encoding: str) -> Iterator[LabelledTree]:
    found = False
    for tree in _parsed(file_lines(path, encoding), str(path)):
        found = True
        yield tree
    if not found:
        raise DataError(f"{path}: holds no tree; expected trees in brackets, such as (3 (2 a) (4 film))")


def _parsed(lines: Iterable[str], name: str) -> Iterator[LabelledTree]:
    building = _Building(1)
    for number, line in enumerate(lines, 1):
        for match in _PIECE.finditer(line):
            piece = match.group()
            try:
                if not building.open:
                    building = _Building(number)
                building.take(piece)
            except _Malformed as error:
                near = line[max(match.start() - 20, 0) : match.end() + 20].strip()
                raise DataError(f"{name}, line {number}: {error}, near {near!r}") from None
            if not building.open:
                yield building.tree()
    if building.open:
        raise DataError(
            f"{name}, line {building.line}: the tree that starts here is not closed; expected {building.open} more ')'"
        )


class _Malformed(Exception):
    """A malformed piece; the message says what is wrong."""


class _Node:
    """A node whose bracket is still open."""

    def __init__(self, first: int):
        self.first = first  # index of its first word
        self.label: str | None = None
        self.word: str | None = None
        self.children: list[int] = []


class _Building:
    """A tree being parsed: the closed nodes, and a stack of open ones."""

    def __init__(self, line: int):
        self.line = line
        self._stack: list[_Node] = []
        self._labels: list[str] = []
        self._words: list[str | None] = []
        self._children: list[tuple[int, ...]] = []
        self._spans: list[tuple[int, int]] = []
        self._leaves = 0

    @property
    def open(self) -> int:
        """The number of open brackets."""
        return len(self._stack)

    def take(self, piece: str) -> None:
        if piece == "(":
            self._begin()
        elif not self._stack:
            raise _Malformed(f"expected a tree, which starts with '(', got {piece!r}")
        elif piece == ")":
            self._end()
        else:
            self._name(piece)

    def _begin(self) -> None:
        if self._stack:
            parent = self._stack[-1]
            if parent.word is not None:
                raise _Malformed(f"a node holds the word {parent.word!r} and a child; expected one word or children")
            parent.label = parent.label or ""
        self._stack.append(_Node(self._leaves))

    def _name(self, piece: str) -> None:
        node = self._stack[-1]
        if node.label is None:
            node.label = piece
        elif node.word is None and not node.children:
            node.word = _unescaped(piece)
        else:
            before = "children" if node.children else f"the word {node.word!r}"
            raise _Malformed(f"the word {piece!r} comes after {before}; expected one word or children in a node")

    def _end(self) -> None:
        node = self._stack.pop()
        if node.word is None and not node.children:
            raise _Malformed(f"the node ({node.label or ''}) is empty; expected a word or children after its label")
        self._leaves += node.word is not None
        self._labels.append(node.label or "")
        self._words.append(node.word)
        self._children.append(tuple(node.children))
        self._spans.append((node.first, self._leaves))
        if self._stack:
            self._stack[-1].children.append(len(self._labels) - 1)

    def tree(self) -> LabelledTree:
        return LabelledTree(
            tuple(self._labels), tuple(self._words), tuple(self._children), tuple(self._spans), self.line
        )


def _unescaped(word: str) -> str:
    if "\\" in word:
        word = word.replace("\\/", "/").replace("\\*", "*")
    return _BRACKETS.get(word, word)
