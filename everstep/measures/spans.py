"""Measures of predicted spans, counted like the script of the CoNLL shared tasks (conlleval, Tjong Kim Sang 2004)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from everstep.measures.tag_schemes import Scheme, converted, spans


class SpanCounts(NamedTuple):
    """Numbers of target spans, predicted spans, and correct ones, which have the same words and the same type."""

    there: int
    predicted: int
    right: int

    @property
    def precision(self) -> float:
        """Correct / predicted, or 0 if nothing was predicted."""
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Correct / target spans, or 0 if there are none."""
        return self.right / self.there if self.there else 0.0

    @property
    def f1(self) -> float:
        """2 P R / (P + R), or 0."""
        both = self.there + self.predicted
        return 2 * self.right / both if both else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """Precision, recall and F1 by name."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class SpanMeasures:
    """Measures of the spans in a set of sentences.

    Attributes:
        words: number of words.
        right_tags: number of words with the correct tag.
        types: the counts of each type, by name.
        total: the counts over all types.
        strict: as `total`, but spans that violate their scheme do not count.
    """

    words: int
    right_tags: int
    types: dict[str, SpanCounts]
    total: SpanCounts
    strict: SpanCounts

    @property
    def accuracy(self) -> float:
        """Share of words with the correct tag."""
        return self.right_tags / self.words if self.words else 0.0

    def __str__(self) -> str:
        """The output of conlleval."""
        whole = self.total
        lines = [
            f"processed {self.words} tokens with {whole.there} phrases; "
            f"found: {whole.predicted} phrases; correct: {whole.right}."
        ]
        if self.words:
            share = 100 * self.right_tags / self.words
            lines.append(f"accuracy: {share:6.2f}%; {_shown(whole)}")
        # conlleval pads bytes, and lists a type without a name twice
        for kind in sorted(self.types):
            found = self.types[kind]
            line = f"{' ' * (17 - len(kind.encode()))}{kind}: {_shown(found)}  {found.predicted}"
            lines += [line] * (2 if not kind and found.there and found.predicted else 1)
        return "".join(line + "\n" for line in lines)


def _shown(found: SpanCounts) -> str:
    precision = 100 * found.right / found.predicted if found.predicted else 0.0
    recall = 100 * found.right / found.there if found.there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return f"precision: {precision:6.2f}%; recall: {recall:6.2f}%; FB1: {f1:6.2f}"


def span_measures(
    targets: Iterable[Sequence[str]], predictions: Iterable[Sequence[str]], scheme: Scheme = "iob2"
) -> SpanMeasures:
    """Compute the measures of predicted tags.

    Args:
        targets: the tags of each sentence.
        predictions: the predicted tags of each sentence.
        scheme: the tag scheme of both.

    Raises:
        ValueError: the numbers of sentences or tags differ.

    Example:
        >>> found = span_measures([["B-PER", "I-PER", "O"]], [["B-PER", "O", "B-LOC"]])
        >>> found.total, round(found.accuracy, 2)
        (SpanCounts(there=1, predicted=2, right=0), 0.33)
    """
    words = right_tags = 0
    counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
    strict = [0, 0, 0]
    for truth, guess in zip(targets, predictions, strict=True):
        if len(truth) != len(guess):
            raise ValueError(f"expected as many predictions as tags, got {len(guess)} for {len(truth)}")
        words += len(truth)
        right_tags += sum(map(str.__eq__, truth, guess))
        for is_strict in (False, True):
            there, found = (set(spans(tags, scheme, is_strict)) for tags in (truth, guess))
            for which, some in enumerate((there, found, there & found)):
                if is_strict:
                    strict[which] += len(some)
                else:
                    counts[which].update(span.type for span in some)
    types = {kind: SpanCounts(*(count[kind] for count in counts)) for kind in sorted(counts[0] | counts[1])}
    return SpanMeasures(words, right_tags, types, SpanCounts(*(count.total() for count in counts)), SpanCounts(*strict))


def conlleval(targets: Iterable[Sequence[str]], predictions: Iterable[Sequence[str]], scheme: Scheme = "iob2") -> str:
    """The output of conlleval for these tags, byte for byte; other schemes are converted to IOB2 first.

    Example:
        >>> print(conlleval([["B-PER", "I-PER", "O"]], [["B-PER", "O", "B-LOC"]]), end="")
        processed 3 tokens with 1 phrases; found: 2 phrases; correct: 0.
        accuracy:  33.33%; precision:   0.00%; recall:   0.00%; FB1:   0.00
                      LOC: precision:   0.00%; recall:   0.00%; FB1:   0.00  1
                      PER: precision:   0.00%; recall:   0.00%; FB1:   0.00  1
    """
    if scheme in ("iobes", "bilou"):
        targets, predictions = (
            [converted(tags, scheme, "iob2") for tags in sentences] for sentences in (targets, predictions)
        )
        scheme = "iob2"
    return str(span_measures(targets, predictions, scheme))
