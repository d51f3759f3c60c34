"""Measures of a classifier of trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from everstep.data.tree_batches import CodedTree
from everstep.networks.classifying import MEANING
from everstep.networks.tree_classifier import TreeClassifier, measured_trees
from everstep.networks.tree_parsing import parsing_figures
from everstep.runs.tree_predictions import to_score

PARSED = ("parsed_accuracy", "phrase_f1")
"""Measures of a model that parses alone."""
TREE_MEANING = {
    **MEANING,
    "node_accuracy": "share of all nodes with a class that is right",
    "nodes": "with a class",
    "parsed_accuracy": "accuracy on sentences whose trees the model builds itself",
    "phrase_f1": "F1 of the spans of phrases in these trees",
}


def tree_figures(
    model: TreeClassifier, trees: Sequence[CodedTree], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The measures on given trees and, if the model parses, on the sentences alone."""
    found = measured_trees(model, to_score(trees), progress)
    return {**found, **parsing_figures(model, trees)} if model.parses else found
