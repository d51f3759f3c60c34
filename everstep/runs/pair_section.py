"""The `data` section of a translation recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from everstep.data.readers.text_pairs import found_pairs
from everstep.data.text.moses import check_moses
from everstep.errors import ConfigError
from everstep.runs.text_data import VocabularySection
from everstep.sections import Count, Files, Probability


class PairSection(VocabularySection):
    """Texts and their translations: files, languages, vocabularies."""

    train: Files = "everstep:tatoeba.train"
    """prefix of two files PREFIX.en and PREFIX.fr, plain, .gz or .xz; a table; JSON lines; or a list of these"""
    valid: Files | None = None
    """validation pairs, as train; null: valid_fraction of the training pairs; no source text is in both splits"""
    valid_fraction: Probability = 0.05
    """share of the training source texts to validate on; 0: no validation"""
    test: Files | None = None
    """test pairs, as train; translated and scored at the end of training"""
    source: int | str = "en"
    """source language: the suffix of a file, the name of a column or key, or the number of a column from 0"""
    target: int | str = "fr"
    """target language, as source"""
    format: Literal["auto", "files", "tsv", "jsonl"] = "auto"
    """files: two parallel files; tsv: tab-separated columns; jsonl: JSON lines; auto: by name and first line"""
    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "bpe"
    """unit of a token; bpe and unigram are sub-words"""
    vocabulary: Literal["joint", "separate"] = "joint"
    """joint: one vocabulary for both languages; separate: one for each, of max_size each"""
    tokenisation: Literal["none", "given", "moses"] = "none"
    """none: plain text; given: the files are tokenised by spaces, and BLEU uses their tokens; moses: tokenised before
    and detokenised after the model (sacremoses)"""
    reverse_source: bool = False
    """reads the source from its end to its start (Sutskever 2014)"""
    max_length: Count = 100
    """most tokens of a text; training leaves out longer pairs"""
    max_ratio: float | None = Field(9.0, ge=1)
    """largest ratio of the lengths of a text and its translation; training leaves out other pairs; null: no limit"""
    batch_tokens: Count | None = None
    """most tokens of the longer side of a batch, with padding; null: train.batch_size pairs per batch"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the vocabulary, missing paths, equal languages, no <eos>, and Moses without language names."""
        yield from super().disagreements()
        if not self.train or (isinstance(self.train, tuple) and not all(self.train)):
            yield "train", "expected a path; got none"
        if self.source == self.target:
            yield "target", f"expected another than source; got {self.target!r} for both"
        if self.eos is False:
            yield "eos", "expected null or true: outputs end with <eos>; got false"
        numbers = [side for side in (self.source, self.target) if str(side).isdecimal()]
        if self.tokenisation == "moses" and numbers:
            yield "tokenisation", f"moses needs languages as source and target, such as en; got {numbers[0]!r}"

    def problems(self, find: Callable[[str, str], Any]) -> Iterator[str]:
        """Missing packages."""
        del find
        if self.tokenisation == "moses":
            try:
                check_moses()
            except ConfigError as error:
                yield str(error)

    def look_for(self, names: str | Sequence[str]) -> list[Path]:
        """The files of a split.

        Raises:
            DataError: a file does not exist.
        """
        found = found_pairs(names, self.source, self.target, self.format)
        return [path for one in found for path in (one.source, one.target) if path is not None]

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0
