"""Whole examples that are held out of the training data for validation: tracks, pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from everstep.errors import DataError

T = TypeVar("T")


def train_and_valid(every: Sequence[T], section: Any, seed: int, unit: str) -> dict[str, list[T]]:
    """The examples of "train" and of "valid", which has `section.valid_fraction` of them, one at least.

    Args:
        every: the examples.
        section: the `data` section, with `validated` and `valid_fraction`.
        seed: decides which are held out.
        unit: the name of an example.

    Raises:
        DataError: there is one example, and one has to be held out.
    """
    least = 1 if section.validated else 0
    held = min(max(round(len(every) * section.valid_fraction) if least else 0, least), len(every) - 1)
    if held < least:
        raise DataError(
            f"data.train: expected two {unit}s or more, of which one is held out; got one; give data.valid, or train "
            "without validation: data.valid_fraction=0"
        )
    out = set(np.random.default_rng(seed).permutation(len(every))[:held].tolist())
    return {
        "train": [one for place, one in enumerate(every) if place not in out],
        "valid": [one for place, one in enumerate(every) if place in out],
    }
