"""What a network reads of a word: its number, its characters, its capitals, its first and last letters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
UNKNOWN = 0
"""The number of whatever training never saw, in every vocabulary."""
CAPITALS = ("other", "lower", "Initial", "UPPER", "miXed", "digits", "d1gits and letters", "mark")
"""The kinds of words by their characters."""
LONGEST = 40
"""Characters of a word that are read: the first and the last half of that where it is longer."""
_DIGIT = re.compile("[0-9]")


def capitals(word: str) -> int:
    """Which of `CAPITALS` a word is.

    Example:
        >>> [CAPITALS[capitals(word)] for word in ("the", "The", "USA", "iPhone", "1996-08", "B2", "...")]
        ['lower', 'Initial', 'UPPER', 'miXed', 'digits', 'd1gits and letters', 'mark']
    """
    letters = any(map(str.isalpha, word))
    if any(map(str.isdigit, word)):
        return 6 if letters else 5
    if not letters:
        return 7
    if word.islower():
        return 1
    if word.isupper():
        return 3 if len(word) > 1 else 2
    if word[0].isupper() and word[1:].islower():
        return 2
    return 4 if word != word.lower() else 0


class Coded(NamedTuple):
    """Sentences as numbers; N words in all, of U different forms.

    Attributes:
        lengths: (S,) words of each sentence.
        words: (N,) numbers of words.
        forms: (N,) which of the U forms each word is.
        features: (N, F) capitals, affixes, and further columns.
        spelled: (C,) the characters of all forms, one after another.
        spelled_lengths: (U,) characters of each form.
        tags: (N, K) of each column of tags; −1 for one that training never saw.
    """

    lengths: Ints
    words: Ints
    forms: Ints
    features: Ints
    spelled: Ints
    spelled_lengths: Ints
    tags: Ints


@dataclass(frozen=True)
class WordVocabulary:
    """What training words are made of. Number 0 is what is not there, in each list.

    Attributes:
        counts: how often each training word occurs, as it is written, the most frequent first.
        min_count: rarer words have no number of their own.
        lowercase, zero_digits: whether words with a number of their own are told apart by case, and by digits.
        characters: those of training words.
        affixes: of each length asked for (n > 0: the last n characters; n < 0: the first n), those that occur twice.
        columns: of each further column, its entries.
        more: words that have a number though training never saw them, such as those of vectors.
    """

    counts: dict[str, int]
    min_count: int
    lowercase: bool
    zero_digits: bool
    characters: tuple[str, ...]
    affixes: dict[int, tuple[str, ...]]
    columns: tuple[tuple[str, ...], ...]
    more: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        sentences: Iterable[Sequence[str]],
        columns: Sequence[Iterable[Sequence[str]]] = (),
        *,
        min_count: int = 1,
        lowercase: bool = False,
        zero_digits: bool = False,
        affixes: Sequence[int] = (),
        more: Sequence[str] = (),
    ) -> WordVocabulary:
        """The vocabulary of sentences of words, and of further columns beside them.

        Example:
            >>> words = WordVocabulary.of([["The", "end", "the", "the"]], lowercase=True)
            >>> words.number("THE"), words.number("End"), words.number("beginning"), words.knows("THE")
            (1, 2, 0, False)
        """
        counted = Counter(word for words in sentences for word in words)
        ordered = dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
        characters = Counter(character for word in counted for character in word)
        ends = {size: Counter(_affix(word, size) for word in counted) for size in affixes}
        return cls(
            ordered,
            min_count,
            lowercase,
            zero_digits,
            tuple(sorted(characters)),
            {size: tuple(sorted(end for end, often in found.items() if often > 1)) for size, found in ends.items()},
            tuple(tuple(sorted({entry for entries in column for entry in entries})) for column in columns),
            tuple(more),
        )

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> WordVocabulary:
        """What `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is something else.
        """
        found = cls(
            {str(word): int(often) for word, often in raw["counts"].items()},
            int(raw["min_count"]),
            bool(raw["lowercase"]),
            bool(raw["zero_digits"]),
            tuple(map(str, raw["characters"])),
            {int(size): tuple(map(str, ends)) for size, ends in raw["affixes"].items()},
            tuple(tuple(map(str, column)) for column in raw["columns"]),
            tuple(map(str, raw["more"])),
        )
        if set(raw) != set(found.to_json()):
            raise ValueError(f"expected the keys {', '.join(found.to_json())}")
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {**vars_of(self), "affixes": {str(size): list(ends) for size, ends in self.affixes.items()}}

    def read(self, word: str) -> str:
        """A word as its number is looked up."""
        word = word.lower() if self.lowercase else word
        return _DIGIT.sub("0", word) if self.zero_digits else word

    @cached_property
    def read_counts(self) -> dict[str, int]:
        """How often each word with a number of its own occurs in training, in the order of the numbers from 1 on."""
        read: Counter[str] = Counter()
        for word, often in self.counts.items():
            read[self.read(word)] += often
        kept = {word: often for word, often in read.items() if often >= self.min_count}
        return {**kept, **{word: read.get(word, 0) for word in self.more if word not in kept}}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.read_counts, 1)}

    def number(self, word: str) -> int:
        """The number of a word; 0: it has none of its own."""
        return self._numbers.get(self.read(word), UNKNOWN)

    def knows(self, word: str) -> bool:
        """Whether training saw the word, written like that."""
        return word in self.counts

    def sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """How many numbers there are of words, of characters, and of each feature."""
        features = (len(CAPITALS), *(len(ends) + 1 for ends in (*self.affixes.values(), *self.columns)))
        return len(self.read_counts) + 1, len(self.characters) + 1, features

    def coded(
        self, sentences: Sequence[Sequence[str]], columns: Sequence[Sequence[Sequence[str]]], tags: Ints
    ) -> Coded:
        """Sentences as numbers.

        Args:
            sentences: the words of each.
            columns: of each further column, the entries of each sentence.
            tags: (N, K).
        """
        forms: dict[str, int] = {}
        of_words = np.fromiter((forms.setdefault(word, len(forms)) for words in sentences for word in words), np.int64)
        spelled = [self._spelled(form) for form in forms]
        of_forms = np.array([[self.number(form), *self._features(form)] for form in forms], np.int64)
        of_forms = of_forms.reshape(len(forms), 2 + len(self.affixes))
        tables = [{entry: number for number, entry in enumerate(column, 1)} for column in self.columns]
        further = [
            np.fromiter((table.get(entry, UNKNOWN) for entries in column for entry in entries), np.int64)
            for table, column in zip(tables, columns, strict=True)
        ]
        found = of_forms[of_words]
        return Coded(
            np.array([len(words) for words in sentences], np.int64),
            found[:, 0],
            of_words,
            np.concatenate([found[:, 1:], *(column[:, None] for column in further)], axis=1),
            np.concatenate([*spelled, np.zeros(0, np.int64)]),
            np.array([len(numbers) for numbers in spelled], np.int64),
            tags,
        )

    @cached_property
    def _character_numbers(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters, 1)}

    def _spelled(self, form: str) -> Ints:
        if len(form) > LONGEST:
            form = form[: LONGEST // 2] + form[-LONGEST // 2 :]
        return np.array([self._character_numbers.get(character, UNKNOWN) for character in form], np.int64)

    @cached_property
    def _affix_numbers(self) -> dict[int, dict[str, int]]:
        return {size: {end: number for number, end in enumerate(ends, 1)} for size, ends in self.affixes.items()}

    def _features(self, form: str) -> list[int]:
        ends = (table.get(_affix(form, size), UNKNOWN) for size, table in self._affix_numbers.items())
        return [capitals(form), *ends]


def _affix(word: str, size: int) -> str:
    """The last `size` characters in lower case, or the first −size where it is negative, marked where all is shown."""
    part = word[-size:] if size > 0 else word[:-size]
    return part.lower() if len(word) > abs(size) else f"={part.lower()}"


def vars_of(vocabulary: WordVocabulary) -> dict[str, Any]:
    """The fields of a vocabulary, without what is computed of them."""
    return {name: getattr(vocabulary, name) for name in WordVocabulary.__dataclass_fields__}
