"""Labelled sequences of numbers of a recipe's `data` section."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.labelled import Labelled
from everstep.data.readers.labelled_numbers import read_numbers
from everstep.data.text.text_files import expand
from everstep.errors import DataError, counted
from everstep.networks.answers import Answers, Array
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.labelled_splits import LabelledSplits, class_summary
from everstep.runs.number_section import NumberSection

MOST_COLUMNS = 12
"""Most columns that are named to the user."""


class ShownSequence(NamedTuple):
    """A sequence as it is shown: its name, its class ("" if unknown), its steps in units of the data."""

    name: str
    label: str
    steps: NDArray[Any]


class LabelledSequences(LabelledSplits):
    """The splits of a recipe; each is read once.

    Raises:
        DataError: a file cannot be read, there is only one class, or no such split.
    """

    def __init__(self, section: NumberSection, seed: int):
        super().__init__(section, seed)
        self.section: NumberSection = section
        self._sequences: list[NDArray[Any]] = []  # of all splits; the text of an example is an index
        self._names: list[str] = []
        self._coded: dict[str, tuple[list[NDArray[np.float32]], Array]] = {}
        self._shape: tuple[tuple[str, ...], tuple[int, ...]] | None = None

    def _given(self, split: str) -> Labelled:
        section = self.section
        found = read_numbers(
            expand(getattr(section, split)),
            section.columns,
            section.format,
            label_separator=section.label_separator,
            fewest_classes=2 if split == "train" and section.classes is None else 1,
            first=len(self._sequences),
        )
        self._shape = self._shape or (found.columns, found.shape)
        if (found.columns, found.shape) != self._shape:
            raise DataError(f"data.{split}: expected {described(*self._shape)}, as in training; "
                            f"got {described(found.columns, found.shape)}")  # fmt: skip
        most = section.max_length
        self._sequences += [one[:most] for one in found.sequences]
        self._names += found.names
        return self.named(found.examples, split)

    def sequences(self, found: Labelled) -> list[NDArray[Any]]:
        """The steps (T, *shape) of each example, as in the file."""
        return [self._sequences[int(text)] for text in found.texts]

    def scaling(self) -> NumberScaling:
        """The scaling, fitted to the training split."""
        sequences = self.sequences(self.learned())
        columns, shape = self._shape or ((), ())
        return NumberScaling.fitted(sequences, columns, shape, self.section.scaling)

    def coded(
        self, split: str, scaling: NumberScaling, answers: Answers, learn: bool = False
    ) -> tuple[list[NDArray[np.float32]], Array]:
        """The scaled sequences of a split and their targets; with `learn`, the targets of training.

        The result for "valid" is cached for repeated validations.

        Raises:
            DataError: a label is not among the answers, or steps are not those of training.
        """
        if split in self._coded:
            return self._coded[split]
        found = self.learned(split) if learn else self.examples(split)
        sequences = self.sequences(found)
        self._check(scaling, split)
        coded = [scaling.scaled(one) for one in sequences], answers.targets(found, learn)
        if split == "valid":
            self._coded[split] = coded
        return coded

    def _check(self, scaling: NumberScaling, split: str) -> None:
        if self._shape is not None and self._shape != (scaling.columns, scaling.shape):
            raise DataError(f"data.{split}: expected {described(scaling.columns, scaling.shape)}, as in training; "
                            f"got {described(*self._shape)}")  # fmt: skip

    def told(self, answers: Answers, scaling: NumberScaling) -> Iterator[str]:
        """Lines for the user, for each split: number of sequences and steps, skipped entries, possible mistakes.

        Raises:
            DataError: a split has a class that training lacks, or other steps.
        """
        for split in self.splits():
            found = self.learned(split)
            answers.targets(found, learn=True)
            self._check(scaling, split)
            lengths = [len(one) for one in self.sequences(found)]
            steps = f"{min(lengths):,} to {max(lengths):,}" if min(lengths) < max(lengths) else f"{lengths[0]:,}"
            left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in found.skipped.items())
            yield f"{split}: {counted(len(found), 'sequence')} of {steps} steps{left_out}"
            yield from (f"note: {note}" for note in found.notes)
            missing = sum(int(np.isnan(one).sum()) for one in self.sequences(found) if one.dtype.kind == "f")
            if missing:
                how = "are read as missing" if scaling.gaps else "are read as the last number, since training has none"
                yield f"note: {missing:,} missing numbers in {split}, which {how}"
            if split != "train" and (known := sum(mark in self._known for mark in self._marks(split))):
                some, share = f"{known:,} of the {len(found):,} sequences of {split}", f"{known / len(found):.1%}"
                yield f"note: {some} are sequences of train too ({share}): its figures tell less of new ones"
        if constant := [name for name, flat in zip(scaling.columns, self._constant(), strict=False) if flat]:
            yield f"note: constant in training, and of no use: {', '.join(constant[:MOST_COLUMNS])}"

    def _marks(self, split: str) -> list[bytes]:
        """A digest of the numbers of each sequence."""
        return [hashlib.sha256(f"{one.shape}".encode() + np.ascontiguousarray(one).tobytes()).digest()
                for one in self.sequences(self.learned(split))]  # fmt: skip

    @cached_property
    def _known(self) -> frozenset[bytes]:
        return frozenset(self._marks("train"))

    def _constant(self) -> list[bool]:
        """Whether each number of a step is the same in all of training."""
        rows = [one.reshape(len(one), -1) for one in self.sequences(self.learned())]
        low = np.fmin.reduce([np.fmin.reduce(one) for one in rows])
        high = np.fmax.reduce([np.fmax.reduce(one) for one in rows])
        return (~(high > low)).tolist()  # type: ignore[no-any-return]

    def summary(self, classes: Sequence[str], scaling: NumberScaling) -> list[str]:
        """Lines for a card: the sequences, their classes, their steps."""
        steps = described(scaling.columns, scaling.shape)
        return [
            f"sequences: {self.section.train}",
            *class_summary(classes, self.section),
            f"step: {steps}, scaled: {self.section.scaling}{', some missing' if scaling.gaps else ''}",
        ]

    def digest(self, split: str) -> str:
        """A digest of numbers and classes."""
        found = self.learned(split)
        total = hashlib.sha256("\0".join(found.labels).encode())
        for one in self.sequences(found):
            total.update(str(one.shape).encode() + np.ascontiguousarray(one).tobytes())
        return total.hexdigest()

    def shown(self, split: str, most: int) -> list[ShownSequence]:
        """The first sequences of classes, for pictures: of different classes, as far as there are so many."""
        found = self.examples(split)
        often: Counter[str] = Counter()
        turns = []
        for label in found.labels:
            turns.append(often[label])
            often[label] += 1
        order = np.argsort(turns, kind="stable")
        apart = max(1, len(often) // most)
        some = order[: apart * most : apart].tolist()
        return [
            ShownSequence(self._names[int(found.texts[place])], found.labels[place], one)
            for place, one in zip(some, self.sequences(found.select(some)), strict=True)
        ]


def described(columns: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """The numbers of a step in words.

    >>> described(("x", "y"), (2,)), described((), (12, 16, 1))
    ('2 numbers a step (x, y)', 'frames of 12 × 16 × 1')
    """
    if len(shape) == 3:
        return f"frames of {' × '.join(map(str, shape))}"
    named = f"{', '.join(columns[:MOST_COLUMNS])}{', …' if len(columns) > MOST_COLUMNS else ''}"
    return f"{counted(shape[0], 'number')} a step ({named})"
