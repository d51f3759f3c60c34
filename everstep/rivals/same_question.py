"""What a question is answered without its story."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.measures import class_measures


def same_question(
    asked: Sequence[str],
    targets: NDArray[np.int64],
    tested: Sequence[str],
    truth: NDArray[np.int64],
    classes: int,
) -> dict[str, Any]:
    """Name and measures of the most frequent answer to the same question in training.

    p(answer | question) = (n(question, answer) + p(answer)) / (n(question) + 1), with p(answer) add-one smoothed.

    >>> found = same_question(["who?", "where?"], np.array([0, 1]), ["where?", "why?"], np.array([1, 0]), 2)
    >>> found["accuracy"]
    1.0

    Args:
        asked, targets: N training questions, and the ids of their answers (N,).
        tested, truth: the questions to evaluate on, and the ids of their answers.
        classes: K, the number of answers.
    """
    began = time.perf_counter()
    prior = (np.bincount(targets, minlength=classes) + 1.0) / (len(targets) + classes)
    counts: dict[str, NDArray[np.float64]] = {}
    for question, target in zip(asked, targets.tolist(), strict=True):
        counts.setdefault(question, np.zeros(classes))[target] += 1
    nothing = np.zeros(classes)
    p = np.stack([(seen + prior) / (seen.sum() + 1) for seen in (counts.get(one, nothing) for one in tested)])
    rows, guesses = np.arange(len(p)), p.argmax(1)
    found = class_measures(truth, guesses, classes, -np.log(p[rows, truth]), p[rows, guesses]).main
    seconds = time.perf_counter() - began
    kept = {name: found[name] for name in ("accuracy", "macro_f1", "loss")}
    return {"name": "most frequent answer to the question", **kept, "seconds": seconds}
