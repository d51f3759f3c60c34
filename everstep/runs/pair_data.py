"""The data of translation: from a recipe's `data` section to pairs, vocabularies and tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.data import Tokenizer
from everstep.data.bucket_order import Ints
from everstep.data.readers.text_pairs import Pair, Side, one_line, read_pairs
from everstep.data.text.language import BLOCK, Language, as_words
from everstep.data.text.moses import Moses
from everstep.errors import ConfigError, DataError, counted
from everstep.runs.directions import Direction, mixture, repeated
from everstep.runs.named_files import split_names
from everstep.runs.pair_section import PairSection
from everstep.runs.pair_tokens import FILES, CodedPairs, NoPairs, Sides, coded_pairs, own_tokens


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
        self._of_languages: dict[Side, Moses] = {}

    def splits(self) -> tuple[str, ...]:
        """The splits of the recipe, among train, valid and test."""
        return split_names(self.section)

    def directions(self, split: str) -> tuple[Direction, ...]:
        """The directions of a split: those to train, or those whose files it has; a test also has untrained ones.

        Raises:
            DataError: the recipe has no such split, or there is no file of any direction.
        """
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        section = self.section
        if split == "train" or section.pairs is None:
            return section.directions
        names = section.train if getattr(section, split) is None else getattr(section, split)
        among = section.tested if split == "test" else section.directions
        found = tuple(direction for direction in among if section.files(names, direction))
        if not found:
            wanted = ", ".join(map(str, among))
            raise DataError(f"data.{split}: expected files of at least one of the directions {wanted}; there is none")
        return found

    def pairs(self, split: str, direction: Direction | None = None) -> Iterator[Pair]:
        """The pairs of a split, with blank lines; of all its directions in turn, or of one.

        Raises:
            DataError: the recipe has no such split, or a file cannot be read.
        """
        for one in self.directions(split) if direction is None else (direction,):
            yield from (pair for _, pair in self._numbered(split, one))

    def _numbered(self, split: str, direction: Direction) -> Iterator[tuple[int, Pair]]:
        """The pairs of a split in one direction, each with the number of the name whose files hold it."""
        section = self.section
        if split == "test" or section.valid is not None or not section.validated:
            yield from self._read(getattr(section, split), direction)
            return
        last = self._last_held_out
        for number, pair in self._read(section.train, direction):
            if (self._hash(number, pair) <= last) == (split == "valid"):
                yield number, pair

    def _read(self, names: str | tuple[str, ...], direction: Direction) -> Iterator[tuple[int, Pair]]:
        section = self.section
        found = section.files(names, direction)
        if not found:
            raise DataError(f"data.pairs: {direction}: none of {names} is the prefix of its two files")
        for number, files in found.items():
            for pair in read_pairs(files, *direction, section.encoding):
                yield number, pair

    def _hash(self, number: int, pair: Pair) -> int:
        """A number by which pairs are held out: of the source text, so that its translations go with it; or of the line
        where there are several directions, so that a text is not held out in one and learnt in another."""
        text = pair.source if self.section.pairs is None else f"{number} {pair.line}"
        key = self._seed.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7, key=key).digest(), "little")

    @cached_property
    def _last_held_out(self) -> int:
        """The largest hash that is held out: valid_fraction of the different ones are at most that."""
        hashes = (
            self._hash(*numbered)
            for direction in self.section.directions
            for numbered in self._read(self.section.train, direction)
        )
        different = np.unique(np.fromiter(hashes, np.int64))
        if len(different) < 2:
            raise DataError(
                f"data.train: expected two different texts or more to hold some out, got "
                f"{len(different)}; give data.valid, or data.valid_fraction=0 train.patience=null"
            )
        many = min(max(1, round(self.section.valid_fraction * len(different))), len(different) - 1)
        return int(different[many - 1])

    def languages(self) -> Sides:
        """Both languages, with vocabularies from the training split alone."""
        if self.section.vocabulary == "joint":
            both = self._tokenizer(self._words((0, 1)))
            return self.sides(both, both)
        return self.sides(self._tokenizer(self._words((0,))), self._tokenizer(self._words((1,))))

    def with_own(self, sides: Sides) -> Sides:
        """Both languages with the tokens that the training texts of each target language have, where there are several;
        and with those that they knew before, of a run that this one starts from."""
        if self.section.pairs is None:
            return sides
        found = {language: set(tokens) for language, tokens in sides.target.own.items()}
        for direction in self.directions("train"):
            for tokens in self._coded("train", sides, direction, learn=True).target.parts():
                found.setdefault(str(direction.target), set()).update(np.unique(tokens).tolist())
        own = {language: sorted(tokens) for language, tokens in found.items()}
        return self.sides(sides.source.tokenizer, sides.target.tokenizer, own)

    def sides(self, source: Tokenizer, target: Tokenizer, own: Mapping[str, Sequence[int]] | None = None) -> Sides:
        """Both languages with these vocabularies, and the tokens of each language where there are several."""
        one, other = (self._moses(side) if self.section.pairs is None else None for side in self.section.directions[0])
        return Sides(Language(source, one, self.section.reverse_source), Language(target, other, own=own))

    def toward(self, sides: Sides, direction: Direction) -> Sides:
        """Both languages for one direction; where there are several, a tag names its target."""
        targets = self.section.targets
        if not targets:
            return sides
        one, other = map(self._moses, direction)
        source = sides.source.toward(str(direction.target), targets, one)
        return Sides(source, sides.target.written_as(str(direction.target), other))

    def asked(self, sides: Sides, to: str | None, source: str | None) -> Sides:
        """Both languages for texts of the language `source` that are to become `to`; None: the only one there is.

        Raises:
            ConfigError: `to` is None, and there are several; or `source`, which tokenisation by Moses asks for.
        """
        readable = self._readable(source)
        known = self.section.targets or (str(self.section.target),)
        if to is None and len(known) > 1:
            raise ConfigError(
                f"this run translates to {', '.join(known)}: say to which (--to, or decode.to={known[0]})"
            )
        return self.toward(sides, Direction(source or readable[0], to or known[0]))

    def _readable(self, source: str | None) -> list[str]:
        """The languages that texts may have.

        Raises:
            ConfigError: `source` is None, but decides how Moses parts the texts.
        """
        readable = list(dict.fromkeys(str(direction.source) for direction in self.section.tested))
        if source is None and self.section.tokenisation == "moses" and len(readable) > 1:
            raise ConfigError(
                f"this run reads {', '.join(readable)}, each with its own rules of Moses: say which "
                f"(decode.source={readable[0]})"
            )
        return readable

    def opened(self, run: Path) -> Sides:
        """Read what `Sides.save` wrote into a run."""
        source, target = (Tokenizer.load(run / name) for name in FILES)
        return self.sides(source, target, own_tokens(run, target.vocab_size))

    def _moses(self, language: Side) -> Moses | None:
        if self.section.tokenisation != "moses":
            return None
        return self._of_languages.setdefault(language, Moses(str(language)))

    def _words(self, sides: tuple[int, ...]) -> Iterator[str]:
        read: set[tuple[int, Side]] = set()
        for direction in self.directions("train"):
            before = frozenset(read)  # a text that several directions have counts once
            for number, pair in self._numbered("train", direction):
                for side in sides:
                    read.add((number, direction[side]))
                    if pair.texts[side] and (number, direction[side]) not in before:
                        yield as_words(pair.texts[side], self.section.unit, self._moses(direction[side]))

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

    def coded(self, split: str, sides: Sides, learn: bool = False, direction: Direction | None = None) -> CodedPairs:
        """The tokens of a split without blank pairs; of all its directions, or of one.

        With `learn`, also without pairs that are empty on one side, too long, or whose lengths differ too much; and
        directions have the shares that `mixture` gives them.

        Raises:
            DataError: a direction has no pair left.
        """
        if split == "valid" and direction is None and self._valid is not None:
            return self._valid
        directions = self.directions(split) if direction is None else (direction,)
        each = [self._coded(split, sides, one, learn) for one in directions]
        coded = each[0] if len(each) == 1 else CodedPairs.joined(each, self._mixed(each) if learn else None)
        if split == "valid" and direction is None:
            self._valid = coded
        return coded

    def _coded(self, split: str, sides: Sides, direction: Direction, learn: bool) -> CodedPairs:
        """The tokens of one direction, from the cache if its files are large."""
        section, held_out = self.section, split != "test" and self.section.valid is None and self.section.validated
        names = section.train if held_out else getattr(section, split)
        files = [(number, *one[:2]) for number, some in section.files(names, direction).items() for one in some]
        # what is held out depends on the texts of all directions, of which `files` has one
        part = [split, self._seed, self._last_held_out] if held_out else "all"
        request = {"split": part, "direction": str(direction), "learn": learn}
        try:
            return coded_pairs(
                lambda: self.pairs(split, direction), self.toward(sides, direction), section, learn, files, request
            )
        except NoPairs as error:
            where = f", {direction}" if self.section.pairs is not None else ""
            raise DataError(f"data.{split}{where}: no pair is left to use ({error})") from None

    def _mixed(self, each: list[CodedPairs]) -> list[Ints | None]:
        """The pairs of each direction, as often as `mixture` says; None: each once."""
        sizes = [len(coded.source.lengths) for coded in each]
        many = mixture(sizes, self.section.mixing_temperature)
        random = np.random.default_rng(self._seed)
        return [
            None if size == count else repeated(size, count, random) for size, count in zip(sizes, many, strict=True)
        ]

    def texts(self, split: str, direction: Direction | None = None) -> tuple[list[str], list[str]]:
        """The source texts and the references of a split, without lines that are blank on both sides."""
        pairs = [(pair.source, pair.target) for pair in self.pairs(split, direction) if pair.source or pair.target]
        return [source for source, _ in pairs], [target for _, target in pairs]

    def digest(self, split: str) -> str:
        """The SHA-256 of the texts of a split."""
        found = hashlib.sha256()
        for direction in self.directions(split):
            if self.section.pairs is not None:
                found.update(f"{direction}\n".encode())
            for pair in self.pairs(split, direction):
                found.update(f"{pair.source}\t{pair.target}\n".encode("utf-8", "surrogatepass"))
        return found.hexdigest()

    def told(self, sides: Sides) -> Iterator[str]:
        """Lines for the user: the number of pairs of each split, pairs left out, suspicious input."""
        for split in self.splits():
            for direction in self.directions(split):
                yield from self._told(split, sides, direction)

    def _told(self, split: str, sides: Sides, direction: Direction) -> Iterator[str]:
        where = split if self.section.pairs is None else f"{split}, {direction}"
        coded = self.coded(split, sides, split == "train", direction)
        tokens = " and ".join(f"{len(side.tokens):,}" for side in coded[:2])
        untrained = (
            "" if direction in self.section.directions else "; zero-shot: training has no pair of this direction"
        )
        yield f"{where}: {counted(len(coded.source.lengths), 'pair')} of {tokens} tokens{untrained}"
        for reason, (count, places) in coded.left_out.items():
            more = "; …" if count > len(places) else ""
            yield f"note: {where}: {counted(count, 'pair')} left out, {reason}: {'; '.join(places)}{more}"
        if split != "train":
            yield from self._known(split, where, direction)

    def _known(self, split: str, where: str, direction: Direction) -> Iterator[str]:
        seen = np.isin(_keys(self.pairs(split, direction)), self._seen)
        if count := int(seen.sum()):
            share = f"{count:,} of {counted(len(seen), 'source text')} ({count / len(seen):.1%})"
            yield f"note: {where}: {share} are also in the training data; the figures are less valid for new texts"

    @cached_property
    def _seen(self) -> NDArray[np.uint64]:
        """Keys of the held-out source texts that are also in the training data, which are read some at a time."""
        pairs = chain.from_iterable(self.pairs(split) for split in self.splits() if split != "train")
        held_out = np.unique(_keys(pairs))
        found = np.zeros(len(held_out), bool)
        training = self.pairs("train")
        while len(held_out) and (block := list(islice(training, BLOCK))):
            keys = _keys(iter(block))
            places = np.searchsorted(held_out, keys, side="right") - 1
            found[places[held_out[places] == keys]] = True
        return held_out[found]

    def summary(self, sides: Sides) -> list[str]:
        """Lines for the card: the pairs, the languages, the vocabularies."""
        section = self.section
        sizes = [f"{side.tokenizer.vocab_size:,}" for side in sides]
        vocabulary = f"{sizes[0]} of all languages" if section.pairs else f"{sizes[0]} of both languages"
        untrained = f"; without training {', '.join(section.zero_shot)}" if section.zero_shot else ""
        return [
            f"pairs: {section.train}",
            f"directions: {', '.join(section.pairs)}{untrained}"
            if section.pairs
            else f"from {section.source} to {section.target}",
            f"vocabulary: {vocabulary if sides.joint else ' and '.join(sizes)}, {section.unit}",
        ]

    def drawn(self, source: str | None, to: str | None, held_out: bool) -> Direction:
        """The direction that pictures are of: the first, or the first from and to these languages; if they are of
        held-out texts, among those of the last split, else perhaps one that no split has.

        Raises:
            ConfigError: own texts of several languages that Moses parts, and `source` is None.
        """
        if not held_out:
            self._readable(source)
        directions = self.directions(self.splits()[-1]) if held_out else self.section.tested
        fit = (one for one in directions if source in (None, str(one.source)) and to in (None, str(one.target)))
        first = directions[0]
        return next(fit, first if held_out else Direction(source or first.source, to or first.target))

    def passage(self, text: str | None, characters: int, direction: Direction) -> str:
        """A source text to draw.

        It is the first line of `text`, cut to `characters`; or if `text` is None, the longest of the first texts of a
        direction of the last split with at most `characters` characters.

        Raises:
            DataError: the text is blank, or no held-out pair has both texts.
        """
        if text is not None:
            line = next((one_line(line) for line in text.splitlines() if line.strip()), "")
            if not line:
                raise DataError("the passage is empty; give a text with some words")
            return line[:characters]
        some_pairs = islice(self.pairs(self.splits()[-1], direction), BLOCK)
        sources = [pair.source for pair in some_pairs if pair.source and pair.target]
        if not sources:
            raise DataError("no held-out pair has both texts; give a text (--text FILE)")
        return max([text for text in sources if len(text) <= characters] or sources, key=len)


def _keys(pairs: Iterator[Pair]) -> NDArray[np.uint64]:
    """Numbers of 64 bits that stand for the source texts that are not empty."""
    texts = (pair.source.encode("utf-8", "surrogatepass") for pair in pairs if pair.source)
    return np.fromiter(
        (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in texts), np.uint64
    )
