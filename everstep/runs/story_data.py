"""Questions on stories of a recipe's `data` section."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from everstep.data import Tokenizer
from everstep.data.readers.labelled import Labelled
from everstep.data.readers.stories import StoryQuestion, questions_in, read_stories
from everstep.data.text.words import words
from everstep.errors import DataError, counted
from everstep.networks.answers import Answers, Array, Ints
from everstep.runs.labelled_splits import ExamplesSection, LabelledSplits, class_summary
from everstep.sections import Count, Files

WHERE = "the input"


class StorySection(ExamplesSection):
    """Files of stories with questions, and their splits."""

    train: Files = "everstep:stories.train"
    """path, list or globs of numbered lines as of bAbI, or JSON lines; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the questions of train"""
    label: str = "answer"
    """JSON lines: key of the answers"""
    encoding: str = "utf-8"
    """encoding of the files"""
    lowercase: bool = True
    """case does not matter"""
    min_count: Count = 1
    """rarer words become `<unk>`"""
    max_words: Count = 100
    """words of a sentence that are read"""


class Stories(LabelledSplits):
    """The splits of a recipe; each is read once.

    Raises:
        DataError: a file cannot be read, there is only one answer, or no such split.
    """

    def __init__(self, section: StorySection, seed: int):
        super().__init__(section, seed)
        self.section: StorySection = section
        self._coded: dict[str, tuple[list[Ints], Array]] = {}

    def _given(self, split: str) -> Labelled:
        section = self.section
        few = 2 if split == "train" and section.classes is None else 1
        found = read_stories(getattr(section, split), section.encoding, section.label, few)
        return self.named(found, split)

    def tokenizer(self) -> Tokenizer:
        """The words of the training stories and questions, with `<unk>`."""
        section = self.section
        lines = (f"{' '.join(spoken(line))}\n" for text in self.learned().texts for line in text.split("\n"))
        return Tokenizer.train(
            lines, "words", min_count=section.min_count, lowercase=section.lowercase, eos=False, unk=True
        )

    def rows(self, texts: Iterable[str], tokenizer: Tokenizer, memory: int) -> list[Ints]:
        """Each text as (sentences + 1, words): ids from 1, 0 where there is no word; the last row is the question.

        Only the latest `memory` sentences are kept.
        """
        known: dict[str, Ints] = {}

        def ids(line: str) -> Ints:
            if line not in known:
                coded = tokenizer.encode(" ".join(spoken(line)), line_end=False)
                known[line] = np.asarray(coded, np.int64)[: self.section.max_words] + 1
            return known[line]

        every = [[ids(line) for line in text.split("\n")[-memory - 1 :]] for text in texts]
        width = max((len(row) for one in every for row in one), default=1)
        return [_padded(one, max(width, 1)) for one in every]

    def coded(
        self, split: str, tokenizer: Tokenizer, answers: Answers, memory: int, learn: bool = False
    ) -> tuple[list[Ints], Array]:
        """The rows and the targets of a split, of questions whose answer is known; with `learn`, those of training."""
        if split not in self._coded or learn:
            found = self.learned(split) if learn else self.answerable(split, answers)
            coded = self.rows(found.texts, tokenizer, memory), answers.targets(found, learn)
            if learn:
                return coded
            self._coded[split] = coded
        return self._coded[split]

    def answerable(self, split: str, answers: Answers) -> Labelled:
        """The questions of a split whose answer is among `answers`.

        Raises:
            DataError: there is none; or, of several labels a question, one is not known.
        """
        found, names = self.examples(split), set(answers.names)
        if self.section.label_separator is not None or names.issuperset(found.labels):
            return found
        kept = [place for place, label in enumerate(found.labels) if label in names]
        if not kept:
            raise DataError(f"{found.place(0)}: training has none of the answers of {split}, such as "
                            f"{found.labels[0]!r}")  # fmt: skip
        return found.select(kept)

    def unanswerable(self, split: str, answers: Answers) -> int:
        """How many questions of a split have an answer that training lacks."""
        return len(self.examples(split)) - len(self.answerable(split, answers))

    def told(self, answers: Answers, memory: int) -> Iterator[str]:
        """Lines for the user, for each split: questions, sentences before them, and what is not read of them.

        Raises:
            DataError: training has none of the answers of a split.
        """
        for split in self.splits():
            found, unknown = self.learned(split), self.unanswerable(split, answers)
            before = np.array([text.count("\n") for text in found.texts])
            yield f"{split}: {counted(len(found), 'question')}, {before.mean():.1f} sentences before each"
            yield from (f"note: {note}" for note in found.notes)
            if unknown:
                yield f"note: {counted(unknown, 'question')} of {split} with answers that training lacks: they count " \
                      "as wrong, and their loss does not count"  # fmt: skip
            if longer := int((before > memory).sum()):
                yield f"note: {counted(longer, 'question')} of {split} {'has' if longer == 1 else 'have'} more than " \
                      f"{memory} sentences before, of which the latest are read (model.memory)"  # fmt: skip
            if split != "train" and (known := sum(text in self._known for text in found.texts)):
                share = f"{known / len(found):.1%}"
                yield f"note: {known:,} of the {len(found):,} questions of {split} are asked of the same story in " \
                      f"train ({share}): its figures tell less of new ones"  # fmt: skip

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.learned().texts)

    def summary(self, classes: Sequence[str], tokenizer: Tokenizer) -> list[str]:
        """Lines for a card: the stories, the answers, the vocabulary."""
        words_ = f"vocabulary: {tokenizer.vocab_size:,} words"
        return [f"stories: {self.section.train}", *class_summary(classes, self.section), words_]

    def digest(self, split: str) -> str:
        """A digest of stories and answers."""
        found = self.learned(split)
        return hashlib.sha256("\0".join([*found.texts, *found.labels]).encode()).hexdigest()

    def asked(self, lines: Iterable[str]) -> Iterator[StoryQuestion]:
        """The questions of lines; see `questions_in`."""
        return questions_in(lines, WHERE, self.section.label)

    def shown(self, split: str, text: str | None, most: int) -> list[tuple[str, str]]:
        """Questions to draw, each with its answer ("" if unknown): an even sample of a split, or those of the text.

        Raises:
            DataError: the text has no question.
        """
        if text is None:
            found = self.examples(split)
            every = list(zip(found.texts, found.labels, strict=True))
        else:
            every = [(one.text, one.answer or "") for one in self.asked(text.splitlines())]
        if not every:
            raise DataError("the text has no question; give a story and a question, such as `1 Mary ran.` and "
                            "`2 Who ran?` below it")  # fmt: skip
        apart = max(1, len(every) // most)
        return every[apart - 1 :: apart][:most]


def spoken(line: str) -> list[str]:
    """The words of a sentence, without its punctuation marks."""
    return [word for word in words(line) if word[0].isalnum() or word[0] == "_"]


def _padded(rows: Sequence[Ints], width: int) -> Ints:
    found = np.zeros((len(rows), width), np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
