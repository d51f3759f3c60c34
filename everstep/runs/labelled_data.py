"""Labelled texts of a recipe's `data` section: examples, vocabulary and token ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from everstep.data import Tokenizer, expand
from everstep.data.readers.labelled import Labelled, read_labelled
from everstep.data.readers.trees import read_trees
from everstep.data.text.words import words
from everstep.errors import DataError, counted
from everstep.networks.answers import Answers, Array, Ints
from everstep.networks.class_pictures import EXAMPLES, LONGEST, Shown
from everstep.networks.token_passage import pieces
from everstep.runs.labelled_section import LabelledSection
from everstep.runs.labelled_splits import LabelledSplits, class_summary
from everstep.runs.text_data import UNITS

SENTENCE_ENDS = (".", "!", "?", "…", "。")
QUICK_WORDS = 200_000
"""Most training words for baselines that are fitted after a training."""


class LabelledTexts(LabelledSplits):
    """The splits of a recipe; each is read once.

    Raises:
        DataError: a file cannot be read, there is only one class, or no such split.
    """

    def __init__(self, section: LabelledSection, seed: int):
        super().__init__(section, seed)
        self.section: LabelledSection = section
        self._coded: dict[str, tuple[list[Ints], Array]] = {}

    def shown(self, split: str, text: str | None, tokenizer: Tokenizer) -> list[Shown]:
        """Up to EXAMPLES texts for pictures, cut after LONGEST tokens.

        An even sample of a split, or the lines of `text`, whose class is unknown ("").
        """
        if text is None:
            found = self.examples(split)
            every = list(zip(found.texts, found.labels, strict=True))
        else:
            every = [(line, "") for line in text.splitlines() if line and not line.isspace()]
        some = every[:: max(1, len(every) // EXAMPLES)][:EXAMPLES]
        ids = [one[:LONGEST] for one in self.tokens([line for line, _ in some], tokenizer)]
        return [
            Shown(label, one, *self.pieces(line, one, tokenizer)) for (line, label), one in zip(some, ids, strict=True)
        ]

    def summary(self, classes: Sequence[str], tokenizer: Tokenizer) -> list[str]:
        """Lines for a card: the texts, their classes, their vocabulary."""
        vocabulary = f"vocabulary: {tokenizer.vocab_size:,} {self.section.unit}"
        return [f"texts: {self.section.train}", *class_summary(classes, self.section), vocabulary]

    def coded(
        self, split: str, tokenizer: Tokenizer, answers: Answers, learn: bool = False
    ) -> tuple[list[Ints], Array]:
        """Token ids and targets of the texts of a split; with `learn`, the targets of training.

        The result for "valid" is cached for repeated validations.

        Raises:
            DataError: a label is not among the answers.
        """
        if split in self._coded:
            return self._coded[split]
        found = self.learned(split) if learn else self.examples(split)
        targets = answers.targets(found, learn)
        coded = self.tokens(found.texts, tokenizer), targets
        if split == "valid":
            self._coded[split] = coded
        return coded

    def told(self, answers: Answers) -> Iterator[str]:
        """Lines for the user, for each split: number of texts, skipped entries, possible mistakes.

        Raises:
            DataError: a split has a class that training lacks.
        """
        for split in self.splits():
            found = self.learned(split)
            answers.targets(found, learn=True)
            left_out = "".join(f"; {count:,} left out: {reason}" for reason, count in found.skipped.items())
            scored = len(self.examples(split))
            few = f", {scored:,} of them scored" if scored < len(found) and split != "train" else ""
            yield f"{split}: {counted(len(found), 'text')}{few}{left_out}"
            yield from (f"note: {note}" for note in found.notes)
            if split != "train" and (known := sum(text in self._known for text in found.texts)):
                some, share = f"{known:,} of the {len(found):,} texts of {split}", f"{known / len(found):.1%}"
                yield f"note: {some} are texts of train too ({share}): its figures tell less of new texts"

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.learned().texts)

    def _given(self, split: str) -> Labelled:
        section = self.section
        paths = getattr(section, split)
        few = 2 if split == "train" else 1
        if section.format == "trees":
            found = _of_trees(paths, section.encoding, section.phrases and split == "train")
        else:
            found = read_labelled(
                paths,
                text=section.text,
                label=section.label,
                label_separator=section.label_separator,
                encoding=section.encoding,
                format=section.format,
                fewest_classes=1 if section.classes else few,
            )
        return self.named(found, split)

    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the training texts, with `<unk>`, since later texts may hold anything."""
        section = self.section
        unk = section.unk
        if unk is None:
            unk = None if section.unit in ("bytes", "bpe") else True
        return Tokenizer.train(
            (f"{part}\n" for text in self.learned().texts for part in self.parts(text)),
            section.unit,
            max_size=section.max_size,
            min_count=section.min_count,
            lowercase=section.lowercase,
            normal_form=section.normal_form,
            eos=section.eos,
            unk=unk,
        )

    def tokens(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[Ints]:
        """Token ids of each text, at most `max_length`; a pair of texts has the first free id as separator."""
        longest = self.section.max_length

        def ids(part: str) -> Ints:
            return np.asarray(tokenizer.encode(part, line_end=False), np.int64)[:longest]

        between = np.array([tokenizer.vocab_size])
        coded = [[ids(part) for part in self.parts(text)] for text in texts]
        return [np.concatenate([one[0], between, one[1]]) if len(one) == 2 else one[0] for one in coded]

    def parts(self, text: str) -> list[str]:
        """The text, or both texts of a pair, as they are tokenised.

        Raises:
            DataError: a pair is expected, but there is no tab.
        """
        if not self.section.paired:
            return [self.spaced(text)]
        first, tab, second = text.partition("\t")
        if not tab and text.strip():
            raise DataError(f"expected two texts with a tab between them, as in training; got {text[:60]!r}")
        return [self.spaced(first), self.spaced(second)]

    def ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids of tokens that end a sentence."""
        coded = [tokenizer.encode(mark, line_end=False).tolist() for mark in SENTENCE_ENDS]
        return tuple(ids[0] for ids in coded if len(ids) == 1 and ids[0] != tokenizer.unk_id)

    def spaced(self, text: str) -> str:
        """A text in one line as it is tokenised, with separate punctuation marks if the unit is words."""
        line = " ".join(text.split("\n"))
        if self.section.unit != "words" or not self.section.punctuation_apart:
            return line
        return " ".join(words(line))

    def pieces(self, text: str, ids: Ints, tokenizer: Tokenizer) -> tuple[list[str], list[tuple[int, int]]]:
        """The pieces of a text to show, each with its first and last token; words as written."""
        found: list[str] = []
        spans: list[tuple[int, int]] = []
        cut = np.flatnonzero(ids == tokenizer.vocab_size)[:1]
        for number, (part, some) in enumerate(zip(self.parts(text), np.split(ids, cut), strict=True)):
            if number:
                found.append("| ")
                spans.append((int(cut[0]), int(cut[0])))
                some = some[1:]
            labels, places = pieces(tokenizer, some.tolist(), UNITS[self.section.unit])
            written = part.split()[: len(labels)]
            whole = self.section.unit == "words" and len(written) == len(labels)
            start = spans[-1][1] + 1 if spans else 0
            found += [f"{word} " for word in written] if whole else labels
            spans += [(first + start, last + start) for first, last in places]
        return found, spans

    def passage(self, text: str | None, characters: int) -> str:
        """The user's text, or else the longest held-out text of at most `characters` characters."""
        if text is None:
            held_out = self.examples(self.splits()[-1]).texts
            text = max((one for one in held_out if len(one) <= characters), key=len, default=held_out[0])
        return self.parts(text.strip()[:characters])[0]

    def rivals(self, split: str, answers: Answers, quick: bool = False) -> list[dict[str, Any]]:
        """Names and measures of baselines on a split, fitted on "train" and tuned on "valid".

        Args:
            split: the split to evaluate on.
            answers: the answers of the head.
            quick: fit on at most QUICK_WORDS training words without tuning, which takes seconds.

        Raises:
            ConfigError: scikit-learn is missing.
        """
        from everstep.rivals.text_classes import WordTexts, text_rivals

        def read(name: str) -> WordTexts:
            found = self.examples(name)
            return WordTexts([self._words(text) for text in found.texts], answers.targets(found))

        if self.section.label_separator is not None:
            return label_figures(*read("train"), *read(split))

        valid = read("valid") if "valid" in self.splits() and split != "valid" and not quick else None
        most = {"most_words": QUICK_WORDS} if quick else {}
        train = read("train")
        rivals = text_rivals(train, read(split), valid, classes=len(answers.names), **most)
        return [rival.record(len(train.words)) for rival in rivals]

    def _words(self, text: str) -> list[str]:
        """The words of a text for baselines; those of a second text are marked as different words."""
        whole = self.section.unit == "words" and not self.section.punctuation_apart
        parts = [part.lower() if self.section.lowercase else part for part in self.parts(text)]
        found = [part.split() if whole else words(part) for part in parts]
        return [*found[0], *(f"second:{word}" for part in found[1:] for word in part)]


def label_figures(*sets: Any) -> list[dict[str, Any]]:
    """Names and measures of the multi-label baselines; see `label_rivals`."""
    from everstep.rivals.label_sets import label_rivals

    return [{"name": r.name, **r.measures.main, "seconds": r.seconds} for r in label_rivals(*sets)]


def _of_trees(paths: str | tuple[str, ...], encoding: str, phrases: bool) -> Labelled:
    """The sentences of trees with the labels of their roots; with `phrases`, also every distinct phrase."""
    files = expand(paths)
    texts: list[str] = []
    labels: list[str] = []
    lines = array("i")
    seen: set[tuple[str, str]] = set()
    for tree in read_trees(files, encoding):
        parts = [(" ".join(words), label) for label, words in tree.phrases()] if phrases else []
        for example in [(" ".join(tree.leaves), tree.label), *parts]:
            if phrases and example in seen:
                continue
            seen.add(example)
            texts.append(example[0])
            labels.append(example[1])
            lines.append(tree.line)
    return Labelled(texts, labels, {}, [], files, array("i", [0] * len(texts)), lines)


def digest(found: Labelled) -> str:
    """A SHA-256 of all texts and classes."""
    total = hashlib.sha256()
    for part in (*found.texts, *found.labels):
        total.update(part.encode("utf-8", "surrogatepass") + b"\n\0")
    return total.hexdigest()
