"""The text of a job that learns of words: vocabulary, phrases, and batches of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from everstep.data import Tokenizer
from everstep.data.text.phrases import find_phrases, join_phrases
from everstep.errors import DataError, RunError, counted
from everstep.networks.word_embedding import WordBatch
from everstep.runs.text_data import Texts, TextSection
from everstep.sections import Count, Files, Positive, Probability
from everstep.storage.reading import json_text, parse_json, read_small, reason

JOINED = "_"
"""What joins the words of a phrase."""
_LARGEST = 1 << 31
_LONG_LINE = 1000
"""Words beyond which a batch does not wait for the end of a line; no window reaches further."""


class WordTextSection(TextSection):
    """Text by words, and what the vectors are measured on."""

    unit: Literal["words"] = "words"
    """words, which are separated by white space"""
    min_count: Count = 5
    """rarer words are not read: those around them become neighbours"""
    eos: Literal[True] = True
    """true: no word meets those of another line"""
    sequence: Literal["stream"] = "stream"
    """stream"""
    valid_fraction: Probability = 0.05
    """0: no validation"""
    phrases: int = Field(0, ge=0, le=8)
    """passes in which frequent pairs of words become one (Mikolov 2013), such as new_york; 2 passes join up to four"""
    phrase_threshold: Positive = 100.0
    """least score of a phrase"""
    phrase_discount: Count = 5
    """pairs are phrases if they occur more often than this"""
    further_files: ClassVar = ("similarity", "analogies")
    similarity: Files | None = None
    """files of a word, a word and a score a line, separated by tabs or spaces"""
    analogies: Files | None = None
    """files of four words a line, the fourth to the third as the second to the first; `: NAME` begins a section"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of any text, and a vocabulary without <unk>."""
        yield from super().disagreements()
        if self.unk is False:
            yield "unk", "expected null: words that are too rare are read as <unk>, which has no vector; got false"


@dataclass(frozen=True)
class WordList:
    """Words and phrases by id.

    Attributes:
        tokenizer: of single words.
        counts: how often each word or phrase occurs in the training text; 0 for `<eos>` and `<unk>`.
        passes: for each pass that joined pairs of ids, these pairs; phrases follow the words, in this order (`joined`).
    """

    tokenizer: Tokenizer
    counts: NDArray[np.int64]
    passes: tuple[NDArray[np.int64], ...] = ()

    @cached_property
    def names(self) -> list[str]:
        """The words and phrases, all distinct."""
        return self._phrases[0]

    @cached_property
    def _phrases(self) -> tuple[list[str], list[NDArray[np.int64]]]:
        names, into = list(self.tokenizer.symbols), list[NDArray[np.int64]]()
        for pairs in self.passes:
            names, ids = joined(names, pairs)
            into.append(ids)
        return names, into

    def read(self, tokens: NDArray[Any]) -> NDArray[np.int32]:
        """The ids of a text with its phrases joined."""
        found = tokens.astype(np.int32)
        for pairs, into in zip(self.passes, self._phrases[1], strict=True):
            found = join_phrases(found, pairs, into)
        return found

    def to_bytes(self) -> bytes:
        """The content of `words.json`."""
        passes = [pairs.tolist() for pairs in self.passes]
        return (json_text({"counts": self.counts.tolist(), "passes": passes}) + "\n").encode()

    @classmethod
    def load(cls, tokenizer: Tokenizer, path: Path) -> WordList:
        """Read `words.json`.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            content = parse_json(read_small(path, _LARGEST))
            passes = tuple(np.array(pairs, np.int64).reshape(-1, 2) for pairs in content["passes"])
            counts = np.array(content["counts"], np.int64)
            found = cls(tokenizer, counts, passes)
            if len(counts) != len(found.names):
                raise ValueError("it counts other words than tokenizer.json has")
            return found
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(f"{path}: missing or damaged ({reason(error)})") from None


def joined(names: Sequence[str], pairs: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """The names, followed by those of pairs of them, and the id of each pair.

    Pairs that are written alike have one id: `new_york city` and `new york_city`, or a word with the mark in it.

    Example:
        >>> joined(["a", "b", "a_b"], np.array([[0, 1], [1, 0]]))
        (['a', 'b', 'a_b', 'b_a'], array([2, 3]))
    """
    places = {name: place for place, name in enumerate(names)}
    ids = [places.setdefault(f"{names[one]}{JOINED}{names[other]}", len(places)) for one, other in pairs.tolist()]
    return list(places), np.array(ids, np.int64)


class WordVectorTexts:
    """The splits of a recipe as word ids, with the phrases that were learned from the training split."""

    def __init__(self, config: WordTextSection, seed: int):
        self.config, self.seed = config, seed
        self.texts = Texts(config)
        self._read: dict[str, NDArray[np.int32]] = {}

    def learned(self) -> WordList:
        """The words and phrases of the training text.

        Raises:
            DataError: no two words are frequent enough.
        """
        tokenizer = self.texts.tokenizer()
        tokens = self.texts.corpus("train", tokenizer).tokens.astype(np.int32)
        special = [tokenizer.eos_id, tokenizer.unk_id]
        apart = [number for number in special if number is not None]
        found, names, passes = tokens, list(tokenizer.symbols), list[NDArray[np.int64]]()
        for _ in range(self.config.phrases):
            pairs = find_phrases(found, len(names), apart, self.config.phrase_discount, self.config.phrase_threshold)
            names, into = joined(names, pairs)
            found = join_phrases(found, pairs, into)
            passes.append(pairs)
        counts = np.bincount(found, minlength=len(names))
        counts[apart] = 0
        counts[counts < self.config.min_count] = 0  # what phrases left of a word may be too rare
        if (often := np.count_nonzero(counts)) < 2:
            raise DataError(
                f"data.train: expected two words that occur at least {counted(self.config.min_count, 'time')} "
                f"(data.min_count); there is {('none', 'one')[often]}"
            )
        return WordList(tokenizer, counts, tuple(passes))

    def tokens(self, split: str, words: WordList) -> NDArray[np.int32]:
        """The ids of a split."""
        if split not in self._read:
            self._read[split] = words.read(self.texts.corpus(split, words.tokenizer).tokens)
        return self._read[split]

    def summary(self, words: WordList) -> list[str]:
        """Lines on the text and its vocabulary."""
        data = self.config
        named = data.train if isinstance(data.train, str) else ", ".join(data.train)
        empty = [f"left out: {empty}"] if (empty := self.texts.left_out()) else []
        joined_words = int(np.count_nonzero(words.counts[words.tokenizer.vocab_size :]))
        phrases = f", {joined_words:,} of them phrases" if data.phrases else ""
        known = counted(int(np.count_nonzero(words.counts)), "word")
        return [f"text: {named}", *empty, f"vocabulary: {known} of at least {data.min_count} occurrences{phrases}"]


class WordBatches:
    """Pieces of a text in its order, of about `batch_size` words, cut at line ends, or within a very long line.

    `carries_state` is false: no word meets those of another batch.
    """

    carries_state = False

    def __init__(self, tokens: NDArray[np.int32], words: WordList, batch_size: int, seed: int):
        self.batch_size, self.seed = batch_size, seed
        self._tokens, self._counted = tokens, words.counts > 0
        ends = np.flatnonzero(tokens == words.tokenizer.eos_id) + 1
        wanted = np.arange(batch_size, len(tokens), batch_size)
        line_ends = np.append(ends, len(tokens))[np.searchsorted(ends, wanted)]
        cuts = np.where(line_ends - wanted <= _LONG_LINE, line_ends, wanted)
        self._starts = np.unique(np.concatenate([[0], cuts, [len(tokens)]]))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def batch(self, epoch: int, index: int) -> WordBatch:
        """Piece `index`, with a seed of its own in every epoch."""
        piece = self._tokens[self._starts[index] : self._starts[index + 1]]
        (seed,) = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)
        return WordBatch(torch.from_numpy(piece), int(self._counted[piece].sum()), int(seed) >> 1)
