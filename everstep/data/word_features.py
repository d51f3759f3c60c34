"""Features of words: id, characters, capitalisation, prefixes and suffixes."""

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
"""The id of anything not seen in training, in every vocabulary."""
CAPITALS = ("other", "lower", "Initial", "UPPER", "miXed", "digits", "d1gits and letters", "mark")
"""The classes of words by their characters."""
LONGEST = 40
"""Most characters read of a word; of a longer one, the first and the last half of this number."""
_DIGIT = re.compile("[0-9]")


def capitals(word: str) -> int:
    """The index of a word's class in `CAPITALS`.

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
    """S encoded sentences with N words in total, of U distinct forms.

    Attributes:
        lengths: (S,) number of words in each sentence.
        words: (N,) word ids.
        forms: (N,) the index of each word's form.
        features: (N, F) capitalisation, affixes, and further columns.
        spelled: (C,) the character ids of all forms, concatenated.
        spelled_lengths: (U,) number of characters of each form.
        tags: (N, K) tag ids of K columns; −1 for a tag not seen in training.
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
    """The words, characters and affixes of the training data. Id 0 is the unknown entry of each list.

    Attributes:
        counts: how often each training word occurs, as written, most frequent first.
        min_count: rarer words have no id of their own.
        lowercase, zero_digits: whether the id of a word ignores case, and maps all digits to 0.
        characters: the characters of training words.
        affixes: for each length (n > 0: the last n characters; n < 0: the first −n), the affixes that occur twice.
        columns: the entries of each further column.
        more: words with an id that training does not contain, such as those of pretrained vectors.
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
        """The vocabulary of sentences, and of further columns.

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
        """The vocabulary that `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: `raw` is malformed.
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
        """The vocabulary as a JSON value."""
        return {**vars_of(self), "affixes": {str(size): list(ends) for size, ends in self.affixes.items()}}

    def read(self, word: str) -> str:
        """The normalised form of a word, by which its id is looked up."""
        word = word.lower() if self.lowercase else word
        return _DIGIT.sub("0", word) if self.zero_digits else word

    @cached_property
    def read_counts(self) -> dict[str, int]:
        """How often each word with its own id occurs in training, in the order of ids, from 1."""
        read: Counter[str] = Counter()
        for word, often in self.counts.items():
            read[self.read(word)] += often
        kept = {word: often for word, often in read.items() if often >= self.min_count}
        return {**kept, **{word: read.get(word, 0) for word in self.more if word not in kept}}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.read_counts, 1)}

    def number(self, word: str) -> int:
        """The id of a word; 0 if it has none of its own."""
        return self._numbers.get(self.read(word), UNKNOWN)

    def knows(self, word: str) -> bool:
        """Whether training contains the word as written."""
        return word in self.counts

    def sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """The number of ids of words, of characters, and of each feature."""
        features = (len(CAPITALS), *(len(ends) + 1 for ends in (*self.affixes.values(), *self.columns)))
        return len(self.read_counts) + 1, len(self.characters) + 1, features

    def coded(
        self, sentences: Sequence[Sequence[str]], columns: Sequence[Sequence[Sequence[str]]], tags: Ints
    ) -> Coded:
        """Encode sentences.

        Args:
            sentences: the words of each sentence.
            columns: for each further column, the entries of each sentence.
            tags: (N, K) tag ids.
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
    """The last `size` characters in lower case, or the first −size if negative; marked if it is the whole word."""
    part = word[-size:] if size > 0 else word[:-size]
    return part.lower() if len(word) > abs(size) else f"={part.lower()}"


def vars_of(vocabulary: WordVocabulary) -> dict[str, Any]:
    """The fields of a vocabulary, without cached properties."""
    return {name: getattr(vocabulary, name) for name in WordVocabulary.__dataclass_fields__}
