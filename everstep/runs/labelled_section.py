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
    """path, list, globs, or a folder with a folder per class; ${EVERSTEP_DATA} is filled in"""
    valid: Files | None = None
    """null: valid_fraction of train, of each class alike"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """scored at the end of training"""
    folds: int | None = Field(None, ge=2)
    """cross-validation: train is parted into so many folds, of each class alike, in the same way for every seed"""
    fold: Count = 1
    """which of 1 … folds is the test, if no test is named; the others are trained on"""
    format: Literal["auto", "tsv", "csv", "jsonl", "fasttext", "lines", "parallel", "folder", "trees"] = "auto"
    """auto: by name and first line; lines: a file a class (mpqa.pos); parallel: labels in another file, line by line;
    trees: bracketed trees whose labels are the classes (SST)"""
    text: str | tuple[str, str] = "text"
    """column or key of the texts; a number counts columns from 0; [a, b]: two texts, which are read apart and compared;
    parallel: the part of the file's name"""
    label: str = "label"
    """column or key of the classes; parallel: the part of the name in its place"""
    label_separator: str | None = Field(None, min_length=1)
    """a text has any number of labels, with this between them, such as a comma; null: it has one class"""
    classes: LabelGroups | None = None
    """a name for several labels, such as {good: [3, 4], bad: [0, 1]}; other labels are left out. null: as they are"""
    merge: LabelGroups | None = None
    """as classes, but all labels are learned: predictions and figures are of these names, which other labels lack"""
    phrases: bool = False
    """trees: every phrase of the training trees is an example too"""
    max_length: Count | None = None
    """tokens of a text that are read; null: all"""
    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "words"
    """what a token is; bpe and unigram are sub-words"""
    punctuation_apart: bool = True
    """words: punctuation marks are words of their own; false: words are what stands between spaces"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of the vocabulary, phrases of what has none."""
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
        """Whether there are two texts to each class."""
        return isinstance(self.text, tuple)

    @property
    def validated(self) -> bool:
        """Whether some texts are validated on."""
        return self.valid is not None or self.valid_fraction > 0

    @property
    def tested(self) -> bool:
        """Whether some texts are kept for a test."""
        return self.test is not None or self.folds is not None
