"""Labelled trees of a recipe's `data` section: trees, vocabulary and ids."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from everstep.data.readers.tree_formats import AnyTree, format_of, read_any_trees, trees_in
from everstep.data.text.text_files import expand
from everstep.data.tree_batches import NONE, CodedTree
from everstep.errors import DataError, RunError, counted
from everstep.networks.answers import OneOf
from everstep.networks.tree_classifier import UNKNOWN
from everstep.runs.named_files import file_problems, split_names
from everstep.sections import Count, Files, LabelGroups, Probability, Section
from everstep.storage.reading import read_json

UNK = "<unk>"
"""The first word of every vocabulary, for words not seen in training."""


class TreeSection(Section):
    """Labelled trees: files, labels, words."""

    train: Files = "trees.txt"
    """path, list or globs; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the training trees"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    format: Literal["auto", "brackets", "jsonl", "conllu"] = "auto"
    """auto: by name and first line; brackets: (3 (2 a) (4 film)), as in SST; jsonl: one tree of {"label", "word",
    "children"} per line; conllu: dependencies, with a comment `# label = …` for each sentence"""
    classes: LabelGroups | None = None
    """names for groups of labels, such as {good: [3, 4], bad: [0, 1]}; nodes with other labels have no class"""
    merge: LabelGroups | None = None
    """as classes, but all labels are learned; predictions and measures use these names and ignore other labels"""
    encoding: str = "utf-8"
    """encoding of the files"""
    lowercase: bool = False
    """ignore case in words"""
    min_count: Count = 1
    """rarer words count as unknown"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Missing file names, unknown encodings, and `merge` together with `classes`."""
        yield from file_problems(self)
        if self.classes is not None and self.merge is not None:
            yield "merge", "expected null beside classes; one of them names the labels"

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0


class Trees:
    """The splits of a recipe; each is read once.

    Raises:
        DataError: a file cannot be read, a split has no root with a class, there is only one class, or no such split.
    """

    def __init__(self, section: TreeSection, seed: int):
        self.section, self._seed = section, seed
        self._read: dict[str, list[AnyTree]] = {}

    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return split_names(self.section)

    def trees(self, split: str) -> list[AnyTree]:
        """The trees of a split."""
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        if split not in self._read:
            if split == "train" or (split == "valid" and self.section.valid is None):
                self._part()
            else:
                self._read[split] = self._given(split)
        return self._read[split]

    def _part(self) -> None:
        """Split the training files into training and held-out trees."""
        whole = self._given("train")
        self._read["train"] = whole
        if self.section.valid is None and self.section.valid_fraction > 0:
            number = round(len(whole) * self.section.valid_fraction)
            if not 0 < number < len(whole):
                raise DataError(
                    f"data.valid_fraction={self.section.valid_fraction:g} of {counted(len(whole), 'tree')} leaves none "
                    "to learn from or to validate on; give data.valid, or train without: data.valid_fraction=0"
                )
            out = set(np.random.default_rng(self._seed).permutation(len(whole))[:number].tolist())
            self._read["train"] = [tree for place, tree in enumerate(whole) if place not in out]
            self._read["valid"] = [tree for place, tree in enumerate(whole) if place in out]

    def _given(self, split: str) -> list[AnyTree]:
        format = None if self.section.format == "auto" else self.section.format
        return read_any_trees(expand(getattr(self.section, split)), format, self.section.encoding)

    def of(self, text: str) -> list[AnyTree]:
        """The trees in the user's text."""
        return list(self.read(text.splitlines(), "the text"))

    def read(self, lines: Iterable[str], name: str) -> Iterator[AnyTree]:
        """Yield the trees in `lines`."""
        source: Iterator[str] = iter(lines)
        if self.section.format != "auto":
            return trees_in(source, self.section.format, name)
        format, source = format_of("", source)
        return trees_in(source, format, name)

    def classes(self) -> tuple[str, ...]:
        """The classes of the training trees, sorted."""
        found = set(
            self._renamed(self.section.classes, [label for tree in self.trees("train") for label in tree.labels])
        )
        if len(found - {""}) < 2:
            came = ", ".join(map(repr, sorted(found - {""}))) or "none"
            raise DataError(f"data.train: expected nodes of at least two classes, got {came}")
        return tuple(sorted(found - {""}))

    def words(self) -> dict[str, int]:
        """The words of the training trees with their counts, the unknown word first."""
        often = Counter(self.word(word) for tree in self.trees("train") for word in tree.words if word is not None)
        kept = {word: count for word, count in often.most_common() if count >= self.section.min_count}
        return {UNK: 0, **{word: count for word, count in kept.items() if word != UNK}}

    def word(self, word: str) -> str:
        """The normalised form of a word."""
        return word.lower() if self.section.lowercase else word

    def coded(
        self,
        trees: Sequence[AnyTree],
        ids: Mapping[str, int],
        answers: OneOf,
        learn: bool = False,
        roots: bool = False,
        source: str = "the trees",
    ) -> list[CodedTree]:
        """Encode trees with the class of each node, or with `roots` of the root alone; with `learn`, those to learn.

        `source` names them in messages.

        Raises:
            DataError: a label was not seen in training.
        """
        names = {name: place for place, name in enumerate(answers.learned if learn else answers.names)}
        naming = self.section.classes if learn or self.section.merge is None else self.section.merge
        found = []
        for tree in trees:
            words = (ids.get(self.word(word), UNKNOWN) for word in tree.words if word is not None)
            labels = self._renamed(naming, tree.labels)
            where = f"{source}: the tree of line {tree.line}"
            targets = np.fromiter((self._target(label, names, where) for label in labels), np.int64, len(labels))
            if roots:
                below = {child for children in tree.children for child in children}
                targets[[node in below for node in range(len(labels))]] = NONE
            found.append(CodedTree(tree, np.fromiter(words, np.int64), targets))
        return found

    def _target(self, label: str, names: Mapping[str, int], where: str) -> int:
        if not label:
            return NONE
        if label not in names:
            known = ", ".join(map(repr, list(names)[:10]))
            raise DataError(
                f"{where} has a node of the class {label!r}, which training never saw: it knows "
                f"{known}; correct the label, or train with examples of it"
            )
        return names[label]

    def _renamed(self, naming: Mapping[str, Sequence[str]] | None, labels: Sequence[str]) -> list[str]:
        """Labels under the recipe's names; "" for labels without a name."""
        if naming is None:
            return list(labels)
        new = {old: name for name, olds in naming.items() for old in olds}
        return [new.get(label, "") for label in labels]

    def told(self, ids: Mapping[str, int], answers: OneOf) -> Iterator[str]:
        """Lines for the user, for each split: numbers of trees and labelled nodes.

        Raises:
            DataError: no root of a split has a class.
        """
        for split in self.splits():
            coded = self.coded(self.trees(split), ids, answers, source=f"data.{split}")
            if not any((one.targets != NONE).any() for one in self.coded(self.trees(split), ids, answers, roots=True)):
                raise DataError(f"data.{split}: expected trees with a class at their root; none has one")
            nodes = sum(int((one.targets != NONE).sum()) for one in coded)
            unknown = sum(int((one.words == UNKNOWN).sum()) for one in coded)
            every = sum(len(one.words) for one in coded)
            share = f"; {unknown / max(every, 1):.1%} of its words are unknown" if split != "train" else ""
            yield f"{split}: {counted(len(coded), 'tree')}, {counted(nodes, 'node')} with a class{share}"

    def summary(self, classes: Sequence[str], words: Mapping[str, int]) -> list[str]:
        """Lines for a card: the trees, their classes, their vocabulary."""
        few = f"{len(classes):,} classes: {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        merged = [f"{name} ({', '.join(of)})" for name, of in (self.section.merge or {}).items()]
        said = [f"said of them: {'; '.join(merged)}"] if merged else []
        return [f"trees: {self.section.train}", few, *said, f"vocabulary: {len(words):,} words"]

    def digest(self, split: str) -> str:
        """A SHA-256 of all words, labels and children."""
        total = hashlib.sha256()
        for tree in self.trees(split):
            total.update(repr((tree.words, tree.labels, tree.children)).encode("utf-8", "surrogatepass"))
        return total.hexdigest()


def written_words(words: Mapping[str, int]) -> bytes:
    """The content of `words.json`: the words in the order of their ids, with their counts in training."""
    return (json.dumps(dict(words), ensure_ascii=False, indent=0, allow_nan=False) + "\n").encode(
        "utf-8", "surrogatepass"
    )


def read_words(path: Path) -> dict[str, int]:
    """The words in `words.json`.

    Raises:
        RunError: the file is missing or damaged.
    """
    found = read_json(path, 1 << 29)
    whole = isinstance(found, dict) and all(type(count) is int and count >= 0 for count in found.values())
    if not whole or next(iter(found), None) != UNK:
        raise RunError(f"{path}: expected words with their counts, {UNK} first")
    return dict(found)
