"""Trees that a classifier builds of plain sentences by shift and reduce, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from everstep.data.tree_batches import NONE, CodedTree, Ints, TreeBatches
from everstep.networks.tree_classifier import TreeClassifier, node_log_probs
from everstep.wirings import ShiftReduce
from everstep.wirings.shift_reduce import Parse

BLOCK = 256
"""Sentences parsed at a time."""
Span = tuple[int, int]
"""The first leaf of a node, and the one after its last."""


@torch.inference_mode()
def built_trees(model: TreeClassifier, sentences: Sequence[Ints]) -> list[Parse]:
    """The binary tree of each sentence, of the ids of its words; every sentence has some."""
    assert isinstance(model.tree, ShiftReduce)
    model.eval()
    words = torch.from_numpy(np.concatenate(sentences)).to(model.embedding.weight.device)
    return model.tree.parse(model.embedding(words), [len(words) for words in sentences])


def leaf_spans(children: Sequence[Sequence[int]]) -> list[Span]:
    """The span of each node of a tree in postorder.

    Example:
        >>> leaf_spans([(), (), (), (1, 2), (0, 3)])
        [(0, 1), (1, 2), (2, 3), (1, 3), (0, 3)]
    """
    found: list[Span] = []
    leaves = 0
    for below in children:
        if below:
            found.append((found[below[0]][0], found[below[-1]][1]))
        else:
            found.append((leaves, leaves + 1))
            leaves += 1
    return found


def parsing_figures(model: TreeClassifier, trees: Sequence[CodedTree]) -> dict[str, float]:
    """How well a model does on sentences alone, whose trees it builds itself.

    Args:
        model: one that parses.
        trees: the right trees, in postorder.

    Returns:
        `parsed_accuracy`, the accuracy on roots with a class, if any has one; `phrase_f1`, F1 of the spans of inner
        nodes below the root, whatever their class, if there are any.
    """
    right = count = shared = every = 0
    for start in range(0, len(trees), BLOCK):
        block = trees[start : start + BLOCK]
        built = built_trees(model, [tree.words for tree in block])
        for own, given in zip(built, block, strict=True):
            spans = [_phrases(tree) for tree in (own.children, given.tree.children)]
            shared += len(spans[0] & spans[1])
            every += len(spans[0]) + len(spans[1])
        roots = [_with_root(own, given) for own, given in zip(built, block, strict=True)]
        batch = TreeBatches(roots, BLOCK, shuffle=False).batch(0, 0)
        targets = batch.targets[batch.forest.roots].numpy()
        said = node_log_probs(model, batch)[batch.forest.roots.numpy()].argmax(1)
        right += int((said == targets).sum())
        count += int((targets != NONE).sum())
    found = {"parsed_accuracy": right / count} if count else {}
    return {**found, "phrase_f1": 2 * shared / every} if every else found


def _phrases(children: Sequence[Sequence[int]]) -> set[Span]:
    """The spans of the inner nodes but the root, which is the same in every tree of a sentence."""
    spans = leaf_spans(children)
    return {span for span, below in zip(spans[:-1], children, strict=False) if below}


def _with_root(own: Parse, given: CodedTree) -> CodedTree:
    """A built tree, with the class of the right root."""
    targets = np.full(len(own.children), NONE)
    targets[-1] = given.targets[-1]
    return CodedTree(own, given.words, targets)
