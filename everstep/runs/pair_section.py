"""A recipe's `data` section of texts with their translations."""

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
    """the beginning of two files, PREFIX.en and PREFIX.fr, plain, .gz or .xz; a table; JSON lines; or a list"""
    valid: Files | None = None
    """null: valid_fraction of the training pairs; no source text is in both parts"""
    valid_fraction: Probability = 0.05
    """0: no validation"""
    test: Files | None = None
    """translated and scored at the end of training"""
    source: int | str = "en"
    """what is translated: the end of a file's name, the name of a column or key, or a column counted from 0"""
    target: int | str = "fr"
    """what it is translated into"""
    format: Literal["auto", "files", "tsv", "jsonl"] = "auto"
    """files: two, line by line; tsv: columns parted by tabs; auto: by name and first line"""
    unit: Literal["chars", "bytes", "words", "bpe", "unigram"] = "bpe"
    """what a token is; bpe and unigram are sub-words"""
    vocabulary: Literal["joint", "separate"] = "joint"
    """joint: one of both languages; separate: each has its own, of max_size each"""
    tokenisation: Literal["none", "given", "moses"] = "none"
    """given: the files' words and punctuation marks are parted by spaces already, and BLEU takes them as they are;
    moses: that is done before and undone after (sacremoses)"""
    reverse_source: bool = False
    """the source is read from its end to its start (Sutskever 2014)"""
    max_length: Count = 100
    """tokens of a text; longer pairs are left out of training"""
    max_ratio: float | None = Field(9.0, ge=1)
    """of the lengths of a text and its translation; pairs beyond are left out of training; null: none are"""
    batch_tokens: Count | None = None
    """most tokens of a batch, padding included, of the longer side; null: train.batch_size pairs"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of the vocabulary, languages that are one, and lines without an end."""
        yield from super().disagreements()
        if not self.train or (isinstance(self.train, tuple) and not all(self.train)):
            yield "train", "expected a path; got none"
        if self.source == self.target:
            yield "target", f"expected another than source; got {self.target!r} for both"
        if self.eos is False:
            yield "eos", "expected null or true: a translation ends with <eos>; got false"
        numbers = [side for side in (self.source, self.target) if str(side).isdecimal()]
        if self.tokenisation == "moses" and numbers:
            yield "tokenisation", f"moses needs languages as source and target, such as en; got {numbers[0]!r}"

    def problems(self, find: Callable[[str, str], Any]) -> Iterator[str]:
        """A package that is missing."""
        del find
        if self.tokenisation == "moses":
            try:
                check_moses()
            except ConfigError as error:
                yield str(error)

    def look_for(self, names: str | Sequence[str]) -> list[Path]:
        """The files of a split.

        Raises:
            DataError: there are none.
        """
        found = found_pairs(names, self.source, self.target, self.format)
        return [path for one in found for path in (one.source, one.target) if path is not None]

    @property
    def validated(self) -> bool:
        """Whether some pairs are validated on."""
        return self.valid is not None or self.valid_fraction > 0
