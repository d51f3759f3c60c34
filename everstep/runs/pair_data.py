"""The data of translation: from a recipe's `data` section to pairs, vocabularies and tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data import Tokenizer
from everstep.data.pair_batches import TokenSequences
from everstep.data.readers.text_pairs import Pair, PairFiles, found_pairs, one_line, read_pairs
from everstep.data.text.language import BLOCK, Language, as_words
from everstep.data.text.moses import Moses
from everstep.errors import DataError, counted
from everstep.runs.pair_section import PairSection
from everstep.storage.files import replace_file

SHOWN = 3
"""The most places that a note names for each reason."""
FILES = ("tokenizer.json", "tokenizer.target.json")


class Sides(NamedTuple):
    """The source language and the target language."""

    source: Language
    target: Language

    @property
    def joint(self) -> bool:
        """Whether both languages share one vocabulary."""
        return self.source.tokenizer.digest == self.target.tokenizer.digest

    def save(self, run: Path) -> None:
        """Write `tokenizer.json` and `tokenizer.target.json`, which are equal if the vocabulary is joint."""
        for name, side in zip(FILES, self, strict=True):
            replace_file(run / name, side.tokenizer.to_bytes())


class CodedPairs(NamedTuple):
    """Pairs as tokens.

    Attributes:
        source, target: the tokens, with `<eos>`.
        left_out: for each reason the number of pairs left out and the first places.
    """

    source: TokenSequences
    target: TokenSequences
    left_out: dict[str, tuple[int, list[str]]]


class PairTexts:
    """The splits of a recipe. Every use of the texts reads their files again.

    Args:
        section: a recipe's `data`.
        seed: selects the held-out source texts.

    Raises:
        DataError: on use: a file cannot be read, or there is no such split.
    """

    def __init__(self, section: PairSection, seed: int):
        self.section, self._seed = section, seed
        self._valid: CodedPairs | None = None

    def splits(self) -> tuple[str, ...]:
        """The splits of the recipe, among train, valid and test."""
        valid, test = self.section.validated, self.section.test is not None
        return ("train", *(("valid",) if valid else ()), *(("test",) if test else ()))

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of a split, with blank lines.

        Raises:
            DataError: the recipe has no such split, or a file cannot be read.
        """
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        section = self.section
        if split == "test" or section.valid is not None or not section.validated:
            yield from self._read(getattr(section, split))
            return
        held_out = self._held_out
        for pair, out in zip(self._read(section.train), held_out, strict=True):
            if out == (split == "valid"):
                yield pair

    def _read(self, names: str | tuple[str, ...]) -> Iterator[Pair]:
        section = self.section
        found: list[PairFiles] = found_pairs(names, section.source, section.target, section.format)
        return read_pairs(found, section.source, section.target, section.encoding)

    @cached_property
    def _held_out(self) -> NDArray[np.bool_]:
        """Mask of held-out training pairs (N,): valid_fraction of the source texts, with all their translations."""
        key = self._seed.to_bytes(8, "little")
        hashes = np.array(
            [
                int.from_bytes(hashlib.blake2b(pair.source.encode(), digest_size=7, key=key).digest(), "little")
                for pair in self._read(self.section.train)
            ],
            np.int64,
        )
        different = np.unique(hashes)
        if len(different) < 2:
            raise DataError(
                f"data.train: expected two different texts or more to hold some out, came "
                f"{len(different)}; give data.valid, or data.valid_fraction=0 train.patience=null"
            )
        many = min(max(1, round(self.section.valid_fraction * len(different))), len(different) - 1)
        held_out: NDArray[np.bool_] = hashes <= different[many - 1]
        return held_out

    def languages(self) -> Sides:
        """Both languages, with vocabularies from the training split alone."""
        if self.section.vocabulary == "joint":
            both = self._tokenizer(self._words((0, 1)))
            return self.sides(both, both)
        return self.sides(self._tokenizer(self._words((0,))), self._tokenizer(self._words((1,))))

    def sides(self, source: Tokenizer, target: Tokenizer) -> Sides:
        """Both languages with these vocabularies."""
        reverse = self.section.reverse_source
        return Sides(Language(source, self._moses[0], reverse), Language(target, self._moses[1]))

    def opened(self, run: Path) -> Sides:
        """Read what `Sides.save` wrote into a run."""
        source, target = (Tokenizer.load(run / name) for name in FILES)
        return self.sides(source, target)

    @cached_property
    def _moses(self) -> tuple[Moses | None, Moses | None]:
        section = self.section
        if section.tokenisation != "moses":
            return None, None
        return Moses(str(section.source)), Moses(str(section.target))

    def _words(self, sides: tuple[int, ...]) -> Iterator[str]:
        for pair in self.pairs("train"):
            yield from (
                as_words(pair.texts[side], self.section.unit, self._moses[side]) for side in sides if pair.texts[side]
            )

    def _tokenizer(self, lines: Iterator[str]) -> Tokenizer:
        section = self.section
        unk = None if section.unit in ("bytes", "bpe") else True  # later texts may contain anything
        return Tokenizer.train(
            lines,
            section.unit,
            max_size=section.max_size,
            min_count=section.min_count,
            lowercase=section.lowercase,
            normal_form=section.normal_form,
            eos=True,
            unk=unk if section.unk is None else section.unk,
        )

    def coded(self, split: str, sides: Sides, learn: bool = False) -> CodedPairs:
        """The tokens of a split without blank pairs.

        With `learn`, also without pairs that are empty on one side, too long, or whose lengths differ too much.

        Raises:
            DataError: no pair is left.
        """
        if split == "valid" and self._valid is not None:
            return self._valid
        parts: list[tuple[TokenSequences, TokenSequences]] = []
        left_out: dict[str, tuple[int, list[str]]] = {}
        pairs = self.pairs(split)
        while block := list(islice(pairs, BLOCK)):
            source, target = (side.encode(pair.texts[at] for pair in block) for at, side in enumerate(sides))
            kept = self._kept(block, source, target, left_out, learn)
            parts.append((source.select(kept), target.select(kept)))
        if not any(len(source.lengths) for source, _ in parts):
            why = "; ".join(f"{count:,} {reason}" for reason, (count, _) in left_out.items()) or "there is none"
            raise DataError(f"data.{split}: no pair is left to use ({why})")
        source, target = (TokenSequences.joined(list(side)) for side in zip(*parts, strict=True))
        coded = CodedPairs(source, target, left_out)
        if split == "valid":
            self._valid = coded
        return coded

    def _kept(
        self,
        block: list[Pair],
        source: TokenSequences,
        target: TokenSequences,
        left_out: dict[str, tuple[int, list[str]]],
        learn: bool,
    ) -> NDArray[np.int64]:
        """The numbers of the pairs of a block to use. Counts the others by reason in `left_out`."""
        longest, ratio = self.section.max_length, self.section.max_ratio or np.inf
        one, other = source.lengths, target.lengths
        blank = np.array([not (pair.source or pair.target) for pair in block])
        reasons = {"blank on both sides": blank}
        if learn:
            half = np.array([not (pair.source and pair.target) for pair in block]) & ~blank
            reasons["empty on one side"] = half
            reasons[f"longer than {longest} tokens (data.max_length)"] = long = np.maximum(one, other) - 1 > longest
            apart = np.maximum(one, other) > ratio * np.minimum(one, other)
            reasons[f"of lengths too far apart (data.max_ratio={ratio:g})"] = apart & ~half & ~long
        for reason, found in reasons.items():
            count, places = left_out.get(reason, (0, []))
            for at in np.flatnonzero(found)[: SHOWN - len(places)]:
                places.append(f"{block[at].path.name}, line {block[at].line}")
            if found.any():
                left_out[reason] = count + int(found.sum()), places
        return np.flatnonzero(~np.logical_or.reduce(list(reasons.values())))

    def texts(self, split: str) -> tuple[list[str], list[str]]:
        """The source texts and the references of a split, without lines that are blank on both sides."""
        pairs = [(pair.source, pair.target) for pair in self.pairs(split) if pair.source or pair.target]
        return [source for source, _ in pairs], [target for _, target in pairs]

    def digest(self, split: str) -> str:
        """The SHA-256 of the texts of a split."""
        found = hashlib.sha256()
        for pair in self.pairs(split):
            found.update(f"{pair.source}\t{pair.target}\n".encode("utf-8", "surrogatepass"))
        return found.hexdigest()

    def told(self, sides: Sides) -> Iterator[str]:
        """Lines for the user: the number of pairs of each split, pairs left out, suspicious input."""
        for split in self.splits():
            coded = self.coded(split, sides, learn=split == "train")
            tokens = " and ".join(f"{len(side.tokens):,}" for side in coded[:2])
            yield f"{split}: {counted(len(coded.source.lengths), 'pair')} of {tokens} tokens"
            for reason, (count, places) in coded.left_out.items():
                more = "; …" if count > len(places) else ""
                yield f"note: {split}: {counted(count, 'pair')} left out, {reason}: {'; '.join(places)}{more}"
            if split != "train":
                yield from self._known(split)

    def _known(self, split: str) -> Iterator[str]:
        known = self._train_sources
        seen = [_key(pair.source) in known for pair in self.pairs(split) if pair.source]
        if count := sum(seen):
            share = f"{count:,} of {counted(len(seen), 'source text')} ({count / len(seen):.1%})"
            yield f"note: {split}: {share} are also in the training data; the figures are less valid for new texts"

    @cached_property
    def _train_sources(self) -> frozenset[bytes]:
        return frozenset(_key(pair.source) for pair in self.pairs("train"))

    def summary(self, sides: Sides) -> list[str]:
        """Lines for the card: the pairs, the languages, the vocabularies."""
        section = self.section
        sizes = [f"{side.tokenizer.vocab_size:,}" for side in sides]
        vocabulary = f"{sizes[0]} of both languages" if sides.joint else f"{sizes[0]} and {sizes[1]}"
        return [
            f"pairs: {section.train}",
            f"from {section.source} to {section.target}",
            f"vocabulary: {vocabulary}, {section.unit}",
        ]

    def passage(self, text: str | None, characters: int) -> tuple[str, str | None]:
        """A source text to draw, and its translation if known.

        It is the first line of `text`, cut to `characters`; or if `text` is None, the longest of the first texts of the
        last split with at most `characters` characters.

        Raises:
            DataError: the text is blank, or no held-out pair has both texts.
        """
        if text is not None:
            line = next((one_line(line) for line in text.splitlines() if line.strip()), "")
            if not line:
                raise DataError("the passage is empty; give a text with some words")
            return line[:characters], None
        pairs = [(p.source, p.target) for p in islice(self.pairs(self.splits()[-1]), BLOCK) if p.source and p.target]
        if not pairs:
            raise DataError("no held-out pair has both texts; give a text (--text FILE)")
        some = [pair for pair in pairs if len(pair[0]) <= characters]
        return max(some or pairs, key=lambda pair: len(pair[0]))


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
