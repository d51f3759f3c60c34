"""Tagged sentences of a recipe's `data` section: sentences, vocabularies and ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal, cast, get_args

from everstep.data.readers.tagged import Tagged, read_tagged
from everstep.data.readers.tagged_columns import Sentence
from everstep.data.readers.tagged_formats import Format, columns_of, read_sentences
from everstep.data.word_features import WordVocabulary
from everstep.errors import ConfigError, DataError
from everstep.networks.learned_tags import Learned
from everstep.networks.tag_columns import UNSEEN, TagColumn
from everstep.runs.named_files import file_problems, split_names
from everstep.sections import Count, Files, Probability, Section

SHOWN_NOTES = 3
"""Most positions listed for each kind of mistake."""


class TaggedSection(Section):
    """Tagged sentences: files, columns, normalisation of words."""

    train: Files = "everstep:orders.train"
    """path, list or globs; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the training sentences"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    format: Literal["auto", "columns", "conllu", "jsonl"] = "auto"
    """format of the files; auto: by name and first line; columns: one word per line, blank lines between sentences"""
    word_column: int | str | None = None
    """column of words: a number from 0, or a name; null: 0 (CoNLL-U: form; JSON lines: tokens)"""
    tag_column: int | str | tuple[int | str, ...] | None = None
    """column of tags, or a list of several; null: -1, the last (CoNLL-U: upos; JSON lines: tags)"""
    feature_columns: tuple[int | str, ...] = ()
    """further columns that the model reads; prediction needs them too"""
    separator: str | None = None
    """column separator; null: tabs if the first line has one, else spaces"""
    comments: bool = True
    """false: a line that begins with # is a word like any other"""
    encoding: str = "utf-8"
    """encoding of the files"""
    scheme: Literal["auto", "none", "iob1", "iob2", "iobes", "bilou"] = "auto"
    """tag scheme of spans; auto: as found in the training tags; none: tags are not spans"""
    learned_scheme: Literal["same", "iob1", "iob2", "iobes", "bilou"] = "iobes"
    """tag scheme that the model learns; predictions are written in the scheme of the data"""
    min_count: Count = 1
    """rarer words count as unknown"""
    lowercase: bool = False
    """ignore case in word ids; characters and capitalisation are still read"""
    zero_digits: bool = False
    """treat all digits in word ids as 0"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Missing file names, unusable separators, unknown encodings."""
        yield from file_problems(self)
        if self.separator == "" or self.separator == "\n":
            yield "separator", f"expected one character or more, such as a comma; got {self.separator!r}"
        if self.tag_column == ():
            yield "tag_column", "expected a column or more; got none"

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0


class TaggedTexts:
    """The splits of a recipe; each is read once.

    Raises:
        DataError: a file cannot be read, or there is no such split.
    """

    def __init__(self, section: TaggedSection, seed: int):
        self.section, self._seed = section, seed
        self._read: dict[str, Tagged] = {}

    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return split_names(self.section)

    def examples(self, split: str) -> Tagged:
        """The sentences of a split."""
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        if split not in self._read:
            held_out = split == "valid" and self.section.valid is None
            whole = held_out or split == "train"
            self._read[split] = self._whole["valid" if held_out else split] if whole else self._given(split)
        return self._read[split]

    @cached_property
    def _whole(self) -> dict[str, Tagged]:
        """The training sentences, and those held out of them."""
        whole = self._given("train")
        if self.section.valid is not None or self.section.valid_fraction == 0:
            return {"train": whole}
        train, valid = whole.held_out(self.section.valid_fraction, self._seed)
        return {"train": train, "valid": valid}

    def _given(self, split: str) -> Tagged:
        section = self.section
        return read_tagged(
            getattr(section, split),
            word=section.word_column,
            tags=section.tag_column,
            features=section.feature_columns,
            format=None if section.format == "auto" else section.format,
            separator=section.separator,
            comments=section.comments,
            encoding=section.encoding,
        )

    def learned(self, affixes: Sequence[int], more: Sequence[str] = ()) -> Learned:
        """The vocabularies and tag columns of the training sentences."""
        section, train = self.section, self.examples("train")
        words = WordVocabulary.of(
            [sentence.words for sentence in train.sentences],
            [
                [sentence.features[place] for sentence in train.sentences]
                for place in range(len(section.feature_columns))
            ],
            min_count=section.min_count,
            lowercase=section.lowercase,
            zero_digits=section.zero_digits,
            affixes=affixes,
            more=more,
        )
        names = columns_of(train.format, section.word_column, section.tag_column, section.feature_columns).tags
        columns = tuple(
            TagColumn.of(str(name), train.tags(place), section.scheme, section.learned_scheme)
            for place, name in enumerate(names)
        )
        return Learned(words, columns, train.format, train.separator)

    def passage(self, text: str | None, learned: Learned, characters: int) -> list[Sentence]:
        """The sentences in about `characters` characters of the user's text; else the longest held-out sentence.

        The text has one sentence per line. The held-out sentence has at most `characters` characters.

        Raises:
            DataError: the text has no word, or lacks columns that the model reads.
        """
        if text is not None:
            lines = text[:characters].splitlines()
            read = sentences_to_tag(lines, learned, self.section, "text", "the text")
            if found := [sentence for sentence in read if sentence.words]:
                return found
            raise DataError("the passage is empty; give a text with some words")
        held_out = self.examples(self.splits()[-1]).sentences
        some = [one for one in held_out if sum(map(len, one.words)) + len(one.words) <= characters]
        return [max(some, key=lambda one: len(one.words), default=held_out[0])]

    def told(self, learned: Learned) -> Iterator[str]:
        """Lines for the user, for each split: its size, skipped entries, possible mistakes."""
        for split in self.splits():
            found = self.examples(split)
            words = sum(len(sentence.words) for sentence in found.sentences)
            left_out = "".join(f"; {count:,} × {what} left out" for what, count in found.skipped.items())
            yield f"{split}: {len(found):,} sentences of {words:,} words{left_out}"
            for place, column in enumerate(learned.columns):
                yield from self._notes(found, place, column)

    def _notes(self, found: Tagged, place: int, column: TagColumn) -> Iterator[str]:
        """Notes on transitions that violate the scheme, and on tags not seen in training, with the first positions."""
        wrong = [
            f"{found.place(number, word)}: {what}"
            for number, tags in enumerate(found.tags(place))
            for word, what in column.breaks(tags)
        ]
        unseen = [
            f"{found.place(number, word)}: training never saw the tag {tags[word]!r}"
            for number, tags in enumerate(found.tags(place))
            for word, tag in enumerate(column.numbers(tags))
            if tag == UNSEEN
        ]
        for places, counted in ((wrong, "invalid transitions, read as conlleval does"), (unseen, "unseen tags, which "
                                "count as mistakes; their sentences have no part in the loss")):  # fmt: skip
            if places:
                more = "; …" if len(places) > SHOWN_NOTES else ""
                yield f"note: {len(places):,} {counted}: {'; '.join(places[:SHOWN_NOTES])}{more}"


def sentences_to_tag(
    lines: Iterable[str], learned: Learned, section: TaggedSection, format: Format, source: str
) -> Iterator[Sentence]:
    """The sentences to tag, from lines without line ends.

    Raises:
        DataError: a line cannot be read; the message gives its number.
    """
    if format == "text" and section.feature_columns:
        needed = ", ".join(map(str, section.feature_columns))
        raise DataError(f"{source}: plain text lacks the columns that this model reads beside words: {needed}")
    return read_sentences(
        lines,
        format,
        columns_of(format, section.word_column, section.tag_column, section.feature_columns),
        source,
        separator=section.separator,
        comments=section.comments,
        alone=learned.separator,
        words_only=True,
    )


def asked_form(trained: Format) -> str:
    """What lines to tag hold, in a sentence for people."""
    return {
        "columns": "One word per line, and an empty line after each sentence.",
        "conllu": "CoNLL-U: ten columns per word, with tabs between them, and an empty line after each sentence.",
        "jsonl": "One sentence per line, as a JSON object with the words in a list.",
        "text": "One sentence per line, with spaces between words.",
    }[trained]


def format_asked(name: str | None, trained: Format) -> Format:
    """The format of predictions: `name`, or that of the training data if None.

    Raises:
        ConfigError: there is no such format.
    """
    if name is None:
        return trained
    if name not in get_args(Format):
        raise ConfigError(f"predict: expected a format among {', '.join(get_args(Format))} (--format); got {name!r}")
    return cast(Format, name)
