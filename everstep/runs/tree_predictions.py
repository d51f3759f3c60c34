"""Predictions for trees, as lines and as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import cast

import numpy as np

from everstep.data.readers.tree_formats import AnyTree, Format, relabelled
from everstep.data.readers.trees import LabelledTree
from everstep.data.text.words import words
from everstep.data.tree_batches import NONE, CodedTree, TreeBatches
from everstep.errors import ConfigError
from everstep.look.tree_pictures import MOST, DrawnTree, draw_trees
from everstep.networks.answers import Array
from everstep.networks.compositions_by_name import check_trees
from everstep.networks.tree_classifier import UNKNOWN, TreeClassifier, node_log_probs
from everstep.networks.tree_parsing import built_trees, leaf_spans
from everstep.runs.predictions import blocks_of
from everstep.runs.task import Asked, Prediction
from everstep.runs.tree_data import Trees
from everstep.wirings.shift_reduce import Parse

BLOCK = 256
"""Trees predicted at a time."""
SCORED_NODES = 32768
"""Most trees × nodes of the largest tree in a batch."""
SOURCE = "the trees to classify"
SHOWN = 4
"""Trees in a picture."""
WRITTEN = ("brackets", "jsonl")


def to_score(trees: Sequence[CodedTree]) -> TreeBatches:
    """Batches for evaluation: trees of near-equal size, with bounded memory."""
    return TreeBatches(trees, BLOCK, shuffle=False, max_nodes=SCORED_NODES)


def each_node(model: TreeClassifier, trees: Sequence[CodedTree]) -> list[Array]:
    """For each tree, p of each answer at each node, in node order."""
    found: list[Array] = [np.empty(0)] * len(trees)
    batches = to_score(trees)
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        ends = np.cumsum([len(trees[place].targets) for place in batch.places])
        for place, p in zip(batch.places, np.split(np.exp(node_log_probs(model, batch)), ends[:-1]), strict=True):
            found[int(place)] = p
    return found


def tree_predictions(
    model: TreeClassifier, lines: Iterable[str], data: Trees, ids: Mapping[str, int], asked: Asked
) -> Iterator[Prediction]:
    """`label<TAB>probability` for each tree; with format `brackets` or `jsonl`, the tree with predicted labels.

    If the model parses, and the first line begins with neither `(` nor `{`, each line is a sentence.

    Raises:
        ConfigError: the format is another one, or cannot express the tree.
        DataError: a line cannot be read; raised after the predictions for the lines before it.
    """
    if asked.format not in (None, *WRITTEN):
        raise ConfigError(f"--format: expected {' or '.join(WRITTEN)}; got {asked.format!r}")
    plain, source = of_sentences(iter(lines)) if model.parses else (False, iter(lines))
    if plain:
        yield from _sentences(model, source, data, ids, asked)
        return
    for block in blocks_of(_supported(model, data.read(source, SOURCE)), BLOCK):
        every = each_node(model, data.coded(unlabelled(block), ids, model.answers))
        for tree, p in zip(block, every, strict=True):
            yield _said(tree, p, model, asked.format)


def _supported(model: TreeClassifier, trees: Iterable[AnyTree]) -> Iterator[AnyTree]:
    for tree in trees:
        check_trees(model.tree.cell, [tree], SOURCE)
        yield tree


def of_sentences(lines: Iterator[str]) -> tuple[bool, Iterator[str]]:
    """Whether lines are sentences and no trees, by the first that is not blank; and all lines."""
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    return not (head and head[-1].lstrip().startswith(("(", "{"))), chain(head, lines)


def _sentences(
    model: TreeClassifier, lines: Iterator[str], data: Trees, ids: Mapping[str, int], asked: Asked
) -> Iterator[Prediction]:
    """Predictions for sentences, of the trees that the model builds; empty for a blank line."""
    numbered = enumerate(lines, 1)
    while block := [(number, words(line)) for number, line in islice(numbered, BLOCK)]:
        some = [(number, found) for number, found in block if found]
        coded = [np.array([ids.get(data.word(word), UNKNOWN) for word in found]) for _, found in some]
        built = built_trees(model, coded) if coded else []
        trees: list[AnyTree] = [_tree(*one, tree) for one, tree in zip(some, built, strict=True)]
        every = iter(zip(trees, each_node(model, data.coded(trees, ids, model.answers)) if trees else [], strict=True))
        for _, found in block:
            yield _said(*next(every), model, asked.format) if found else Prediction("", {})


def _tree(number: int, found: Sequence[str], built: Parse) -> LabelledTree:
    """A built tree with its words."""
    left = iter(found)
    named = tuple(None if below else next(left) for below in built.children)
    return LabelledTree(("",) * len(named), named, tuple(built.children), tuple(leaf_spans(built.children)), number)


def unlabelled(trees: Sequence[AnyTree]) -> list[AnyTree]:
    """The trees with their labels hidden."""
    return [cast(AnyTree, _Unlabelled(tree)) for tree in trees]


class _Unlabelled:
    def __init__(self, tree: AnyTree):
        self.words, self.children, self.line = tree.words, tree.children, tree.line
        self.labels = ("",) * len(tree.children)


def _said(tree: AnyTree, p: Array, model: TreeClassifier, format: str | None) -> Prediction:
    below = {child for children in tree.children for child in children}
    root = next(node for node in range(len(p)) if node not in below)
    text, record = model.answers.said(p[root])
    names = [model.answers.names[place] for place in p.argmax(1)]
    record = {"text": " ".join(tree.leaves), **record, "nodes": names}
    if format is None:
        return Prediction(text, record)
    if not isinstance(tree, LabelledTree):
        raise ConfigError(
            f"--format {format}: expected trees in brackets or JSON, whose nodes have labels; got CoNLL-U"
        )
    return Prediction(relabelled(tree, names, cast(Format, format)), record)


def tree_pictures(
    model: TreeClassifier, trees: Sequence[AnyTree], coded: Sequence[CodedTree], out: Path
) -> Iterator[tuple[Path, str]]:
    """Draw some trees with the prediction at every node: an even sample of those small enough to read."""
    small = [place for place, tree in enumerate(trees) if 1 < len(tree.children) <= MOST]
    chosen = small[:: max(1, len(small) // SHOWN)][:SHOWN]
    if not chosen:
        return
    drawn = []
    for place, p in zip(chosen, each_node(model, [coded[place] for place in chosen]), strict=True):
        tree, targets, said = trees[place], coded[place].targets, p.argmax(1)
        right = [None if target == NONE else bool(target == guess) for target, guess in zip(targets, said, strict=True)]
        sure = p.max(1).tolist()
        drawn.append(DrawnTree(tree.words, tree.children, said.tolist(), sure, right))
    yield out / "trees.png", draw_trees(drawn, model.answers.names, out / "trees.png")
