"""A recipe's `data` section of labelled texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from everstep.runs.text_data import VocabularySection
from everstep.sections import Count, Files, LabelGroups, Probability


class LabelledSection(VocabularySection):
    """Labelled texts: files, columns, classes."""

    takes_folders: ClassVar[bool] = True

    train: Files = "everstep:reviews.train"
    """path, list, globs, or a folder with a folder per class; ${EVERSTEP_DATA} is expanded"""
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
    format: Literal["auto", "tsv", "csv", "jsonl", "fasttext", "lines", "parallel", "folder", "trees"] = "auto"
    """auto: by name and first line; lines: one file per class (mpqa.pos); parallel: labels in a second file, line by
    line; trees: bracketed trees whose labels are the classes (SST)"""
    text: str | tuple[str, str] = "text"
    """column or key of the texts; a number counts columns from 0; [a, b]: a pair of texts, each read by itself, then
    compared; parallel: the part of the file name"""
    label: str = "label"
    """column or key of the classes; parallel: the part of the file name that replaces it"""
    label_separator: str | None = Field(None, min_length=1)
    """separator, such as a comma, if a text may have any number of labels; null: each text has one class"""
    classes: LabelGroups | None = None
    """names for groups of labels, such as {good: [3, 4], bad: [0, 1]}; texts with other labels are dropped"""
    merge: LabelGroups | None = None
    """as classes, but all labels are learned; predictions and measures use these names and ignore other labels"""
    phrases: bool = False
    """trees: every phrase of the training trees is also an example"""
    max_length: Count | None = None
    """most tokens read of a text; null: all"""
    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "words"
    """kind of tokens; bpe and unigram are sub-words"""
    punctuation_apart: bool = True
    """words: punctuation marks are separate words; false: split at spaces only"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the vocabulary, and `phrases` without trees."""
        yield from super().disagreements()
        if self.phrases and self.format != "trees":
            yield "phrases", f"expected format trees beside it; got {self.format}"
        if self.label_separator is not None and self.classes is not None:
            yield "classes", "expected null beside label_separator, with which labels are as they are"
        if self.label_separator is not None and self.merge is not None:
            yield "merge", "expected null beside label_separator, with which labels are as they are"
        if self.paired and self.format not in ("auto", "tsv", "csv", "jsonl"):
            yield "text", f"expected one column, since files of format {self.format} hold one text each; got two"
        if self.fold > (self.folds or 1):
            yield "fold", f"expected at most folds ({self.folds or 'null, which is none'}); got {self.fold}"

    @property
    def paired(self) -> bool:
        """Whether an example is a pair of texts."""
        return isinstance(self.text, tuple)

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0

    @property
    def tested(self) -> bool:
        """Whether there is a test split."""
        return self.test is not None or self.folds is not None
