"""Baselines without trees, on the same sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from everstep.data.readers.trees import LabelledTree
from everstep.data.tree_batches import NONE
from everstep.networks.answers import OneOf
from everstep.runs.labelled_data import QUICK_WORDS
from everstep.runs.tree_data import Trees


def tree_rivals(
    data: Trees, ids: Mapping[str, int], answers: OneOf, split: str, phrases: bool, quick: bool
) -> list[dict[str, Any]]:
    """Names and measures of baselines for the root classes of a split, fitted on "train" and tuned on "valid".

    Args:
        data: the splits.
        ids: the id of each word.
        answers: the answers of the head.
        split: the split to evaluate on.
        phrases: whether to fit on the words below every node (of trees in brackets or JSON), else on sentences.
        quick: fit on at most QUICK_WORDS training words without tuning, which takes seconds.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    from everstep.rivals.text_classes import WordTexts, text_rivals

    def read(name: str, phrases: bool = False) -> WordTexts:
        trees = data.trees(name)
        texts: list[list[str]] = []
        targets: list[int] = []
        for tree, coded in zip(trees, data.coded(trees, ids, answers, roots=not phrases), strict=True):
            leaves = [data.word(word) for word in tree.leaves]
            for node in np.flatnonzero(coded.targets != NONE):
                first, last = tree.spans[node] if isinstance(tree, LabelledTree) else (0, len(leaves))
                texts.append(leaves[first:last])
                targets.append(int(coded.targets[node]))
        return WordTexts(texts, np.array(targets))

    fitted = read("train", phrases)
    valid = read("valid") if "valid" in data.splits() and split != "valid" and not quick else None
    most = {"most_words": QUICK_WORDS} if quick else {}
    found = text_rivals(fitted, read(split), valid, classes=len(answers.names), **most)
    return [rival.record(len(fitted.words)) for rival in found]
