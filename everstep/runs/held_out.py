"""Whole examples, such as tracks and pieces: their splits, and those that are held out for validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from everstep.errors import DataError
from everstep.runs.named_files import split_names

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


class WholeExamples(ABC, Generic[T]):
    """The examples of a recipe by split; each file is read once. A subclass reads files in `_given`.

    Args:
        section: the `data` section, with files named `train`, `valid` and `test`.
        seed: decides which examples are held out.

    Attributes:
        unit: the name of an example.
        notes: what is told to the user of the files that were read.

    Raises:
        DataError: on first use: a file cannot be read or used, or there is no such split.
    """

    unit: ClassVar[str]

    def __init__(self, section: Any, seed: int):
        self.section, self._seed = section, seed
        self._read: dict[str, list[T]] = {}
        self.notes: list[str] = []

    def splits(self) -> tuple[str, ...]:
        """The splits of the recipe, among train, valid and test."""
        return split_names(self.section)

    def of(self, split: str) -> list[T]:
        """The examples of a split.

        Raises:
            DataError: there is no such split, or it cannot be used.
        """
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        if split != "test" and self.section.valid is None:
            return self._parted[split]
        if split not in self._read:
            self._read[split] = self._given(split)
        return self._read[split]

    @cached_property
    def _parted(self) -> dict[str, list[T]]:
        return train_and_valid(self._given("train"), self.section, self._seed, self.unit)

    @abstractmethod
    def _given(self, split: str) -> list[T]:
        """The examples of the files of a split."""
