"""The `data` section of a translation recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from everstep.data.readers.text_pairs import PairFiles, found_pairs
from everstep.data.text.moses import check_moses
from everstep.errors import ConfigError, DataError
from everstep.runs.directions import Direction, direction_of
from everstep.runs.text_data import VocabularySection
from everstep.sections import Count, Files, Probability


class PairSection(VocabularySection):
    """Texts and their translations: files, languages, vocabularies."""

    train: Files = "everstep:tatoeba.train"
    """prefix of two files PREFIX.en and PREFIX.fr, plain, .gz or .xz; a table; JSON lines; or a list of these"""
    valid: Files | None = None
    """validation pairs, as train; null: valid_fraction of the training pairs; no source text (with pairs: no
    line) is in both splits"""
    valid_fraction: Probability = 0.05
    """share of the training source texts to validate on; 0: no validation"""
    test: Files | None = None
    """test pairs, as train; translated and scored at the end of training"""
    source: int | str = "en"
    """source language: the suffix of a file, the name of a column or key, or the number of a column from 0"""
    target: int | str = "fr"
    """target language, as source"""
    pairs: tuple[str, ...] | None = None
    """several directions for one model, such as [en-de, de-en, en-fr], in place of source and target (Johnson 2017): a
    token such as <2de> before each source names the target language; null: from source to target alone"""
    zero_shot: tuple[str, ...] = ()
    """directions, such as [de-fr], that are tested beside pairs, but not trained"""
    mixing_temperature: float = Field(1.0, ge=1)
    """T: training sees a direction of n pairs in proportion to n^(1/T); 1: each pair once an epoch"""
    format: Literal["auto", "files", "tsv", "jsonl"] = "auto"
    """files: two parallel files; tsv: tab-separated columns; jsonl: JSON lines, an array; auto: by name and text"""
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
    """most tokens of the longer side of a batch, with padding; null: about as many as train.batch_size pairs have on
    average"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the vocabulary, equal languages, no <eos>, and Moses without language names."""
        yield from super().disagreements()
        if self.pairs is not None:
            yield from self._directions_disagree(self.pairs)
        elif self.zero_shot or self.mixing_temperature != 1:
            key = "zero_shot" if self.zero_shot else "mixing_temperature"
            yield key, "expected pairs beside it, the directions to train"
        elif self.source == self.target:
            yield "target", f"expected another than source; got {self.target!r} for both"
        if self.eos is False:
            yield "eos", "expected null or true: outputs end with <eos>; got false"
        named = (self.source, self.target) if self.pairs is None else "-".join(self.pairs).split("-")
        numbers = [side for side in named if str(side).isdecimal()]
        if self.tokenisation == "moses" and numbers:
            yield "tokenisation", f"moses needs languages such as en as sources and targets; got {numbers[0]!r}"

    def _directions_disagree(self, pairs: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Directions that cannot be read, are named twice or cannot be translated, and settings of one language."""
        named = {"pairs": pairs, "zero_shot": self.zero_shot}
        wrong = [(key, text, problem) for key, texts in named.items() for text in texts if (problem := _problem(text))]
        yield from ((key, problem) for key, _, problem in wrong)
        if not pairs:
            yield "pairs", "expected a direction or more, such as [en-de, de-en]; got none"
        if wrong or not pairs:
            return
        every = [*pairs, *self.zero_shot]
        for key, texts in named.items():
            yield from ((key, f"{text} is named twice") for text in dict.fromkeys(texts) if every.count(text) > 1)
        languages = {language for direction in self.directions for language in direction}
        for direction in map(direction_of, self.zero_shot):
            if direction.target not in self.targets or direction.source not in languages:
                read = direction.source not in languages
                strange = f"reads {direction.source}" if read else f"writes {direction.target}"
                yield "zero_shot", f"{direction}: no direction of pairs {strange}"
        if self.vocabulary != "joint":
            yield "vocabulary", "expected joint beside pairs: every language is read and written by one model"

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
        found = [one for direction in self.tested for files in self.files(names, direction).values() for one in files]
        for name in [] if self.pairs is None else [names] if isinstance(names, str) else names:
            if not any(self.files(name, direction) for direction in self.tested):
                found_pairs(name, *self.directions[0], self.format)  # raises, and says what is missing
        return [path for one in found for path in (one.source, one.target) if path is not None]

    def files(self, names: str | Sequence[str], direction: Direction) -> dict[int, list[PairFiles]]:
        """The files of a direction, by the number of their name; among several directions, a name may lack some.

        Raises:
            DataError: there is one direction alone, and a file does not exist.
        """
        found = {}
        for number, name in enumerate([names] if isinstance(names, str) else names):
            try:
                found[number] = found_pairs(name, *direction, self.format)
            except DataError:
                if self.pairs is None:
                    raise
        return found

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions to train."""
        if self.pairs is None:
            return (Direction(self.source, self.target),)
        return tuple(map(direction_of, self.pairs))

    @property
    def tested(self) -> tuple[Direction, ...]:
        """The directions to train, and then those that are only tested."""
        return (*self.directions, *map(direction_of, self.zero_shot))

    @property
    def targets(self) -> tuple[str, ...]:
        """The target languages that a token before the source names; () where there is one direction alone.

        They are sorted, so that a run that starts from another one, with pairs in another order, has the same tokens.
        """
        return () if self.pairs is None else tuple(sorted({str(one.target) for one in self.directions}))

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0


def _problem(text: str) -> str:
    """What is wrong with the text of a direction; "" if nothing is."""
    try:
        direction_of(text)
    except ValueError as error:
        return str(error)
    return ""
