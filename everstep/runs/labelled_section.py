"""A recipe's `data` section of labelled texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from everstep.runs.labelled_splits import ExamplesSection
from everstep.runs.text_data import VocabularySection
from everstep.sections import Count, Files


class LabelledSection(ExamplesSection, VocabularySection):
    """Labelled texts: files, columns, classes."""

    takes_folders: ClassVar[bool] = True

    train: Files = "everstep:reviews.train"
    """path, list, globs, or a folder with a folder per class; ${EVERSTEP_DATA} is expanded"""
    format: Literal["auto", "tsv", "csv", "jsonl", "fasttext", "lines", "parallel", "folder", "trees"] = "auto"
    """auto: by name and first line; lines: one file per class (mpqa.pos); parallel: labels in a second file, line by
    line; trees: bracketed trees whose labels are the classes (SST)"""
    text: str | tuple[str, str] = "text"
    """column or key of the texts; a number counts columns from 0; [a, b]: a pair of texts, each read by itself, then
    compared; parallel: the part of the file name"""
    label: str = "label"
    """column or key of the classes; parallel: the part of the file name that replaces it"""
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
        if self.paired and self.format not in ("auto", "tsv", "csv", "jsonl"):
            yield "text", f"expected one column, since files of format {self.format} hold one text each; got two"

    @property
    def paired(self) -> bool:
        """Whether an example is a pair of texts."""
        return isinstance(self.text, tuple)
