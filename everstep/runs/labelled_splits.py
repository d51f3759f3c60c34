"""The splits of labelled examples, and the part of a recipe's `data` section that says how they are made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from pydantic import Field

from everstep.data.readers.labelled import Labelled
from everstep.errors import DataError
from everstep.sections import Count, Files, LabelGroups, Probability, Section


class ExamplesSection(Section):
    """Files of labelled examples, their splits and their classes."""

    train: Files
    """path, list or globs; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of train, stratified by class"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    folds: int | None = Field(None, ge=2)
    """cross-validation: train is divided into this many folds, stratified by class, the same for every seed"""
    fold: Count = 1
    """the fold (1 … folds) used as test, if test is null; the others are trained on"""
    label: str = "label"
    """column or key of the classes"""
    label_separator: str | None = Field(None, min_length=1)
    """separator, such as a comma, if an example may have any number of labels; null: each has one class"""
    classes: LabelGroups | None = None
    """names for groups of labels, such as {good: [3, 4], bad: [0, 1]}; examples with other labels are dropped"""
    merge: LabelGroups | None = None
    """as classes, but all labels are learned; predictions and measures use these names and ignore other labels"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Groups of labels beside several labels an example, and a fold that there is not."""
        yield from super().disagreements()
        if self.label_separator is not None and self.classes is not None:
            yield "classes", "expected null beside label_separator, with which labels are as they are"
        if self.label_separator is not None and self.merge is not None:
            yield "merge", "expected null beside label_separator, with which labels are as they are"
        if self.fold > (self.folds or 1):
            yield "fold", f"expected at most folds ({self.folds or 'null, which is none'}); got {self.fold}"

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0

    @property
    def tested(self) -> bool:
        """Whether there is a test split."""
        return self.test is not None or self.folds is not None


class LabelledSplits:
    """The splits of a recipe; each is read once. A subclass reads files in `_given`.

    Raises:
        DataError: a file cannot be read, there is only one class, or no such split.
    """

    def __init__(self, section: ExamplesSection, seed: int):
        self._of, self._seed = section, seed
        self._read: dict[str, Labelled] = {}
        self._merged: dict[str, Labelled] = {}

    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        valid, test = self._of.validated, self._of.tested
        return ("train", *(("valid",) if valid else ()), *(("test",) if test else ()))

    def examples(self, split: str) -> Labelled:
        """The examples of a split with the labels to predict."""
        merge = self._of.merge
        if merge is None:
            return self.learned(split)
        if split not in self._merged:
            self._merged[split] = grouped(self.learned(split), merge, 1, split, "merge")
        return self._merged[split]

    def learned(self, split: str = "train") -> Labelled:
        """The examples of a split with the labels to learn (before `merge`)."""
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        if split not in self._read:
            self._read[split] = self._whole[split] if split in self._parts else self._given(split)
        return self._read[split]

    @abstractmethod
    def _given(self, split: str) -> Labelled:
        """The examples of the files of a split."""

    def named(self, found: Labelled, split: str) -> Labelled:
        """The examples under the names of `classes`, if it is set; see `grouped`."""
        groups, few = self._of.classes, 2 if split == "train" else 1
        return found if groups is None else grouped(found, groups, few, split, "classes")

    @property
    def _parts(self) -> tuple[str, ...]:
        """The splits taken from the training files."""
        section = self._of
        valid = section.valid is None and section.valid_fraction > 0
        return ("train", *(("valid",) if valid else ()), *(("test",) if section.folds and section.test is None else ()))

    @cached_property
    def _whole(self) -> dict[str, Labelled]:
        """The training files split into test fold, validation and training."""
        section, whole = self._of, self._given("train")
        found = {"train": whole}
        if section.folds:
            found["train"], found["test"] = whole.fold(section.fold, section.folds, section.label_separator is None)
        if "valid" in self._parts:
            alike = section.label_separator is None
            found["train"], found["valid"] = found["train"].held_out(section.valid_fraction, self._seed, alike)
        return {**found, "train": replace(found["train"], skipped=whole.skipped, notes=whole.notes)}


def grouped(found: Labelled, classes: dict[str, tuple[str, ...]], few: int, split: str, key: str) -> Labelled:
    """The examples whose labels `classes` lists, under the new names."""
    new = {old: name for name, olds in classes.items() for old in olds}
    kept = [place for place, label in enumerate(found.labels) if label in new]
    some = found.select(kept)
    renamed = replace(some, labels=[new[label] for label in some.labels])
    if len(set(renamed.labels)) < few:
        known = ", ".join(sorted(set(found.labels))[:10])
        raise DataError(f"data.{split}: data.{key} leaves fewer than {few} classes; the labels are {known}")
    return renamed


def class_summary(classes: Sequence[str], section: ExamplesSection) -> list[str]:
    """Lines for a card: the classes, and how they are merged."""
    few = f"{len(classes):,} classes: {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
    merged = [f"{name} ({', '.join(of)})" for name, of in (section.merge or {}).items()]
    return [few, *([f"said of them: {'; '.join(merged)}"] if merged else [])]
