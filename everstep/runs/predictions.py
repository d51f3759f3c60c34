"""Predictions for lines of text, block by block, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from everstep.data import Tokenizer
from everstep.errors import DataError
from everstep.networks.classifying import class_probabilities, to_score
from everstep.networks.sequence_classifier import SequenceClassifier
from everstep.networks.token_contributions import by_piece, marked, relevance
from everstep.runs.labelled_data import LabelledTexts
from everstep.runs.task import Prediction

Given = TypeVar("Given")
BLOCK = 1024
"""Lines predicted at a time."""


def by_block(
    lines: Iterable[str], answer: Callable[[list[str]], Iterable[Prediction]], size: int = BLOCK
) -> Iterator[Prediction]:
    """One prediction per line, in order; `answer` receives up to `size` lines at a time, without line ends."""
    yield from in_blocks((line.removesuffix("\n") for line in lines), answer, size)


def in_blocks(
    given: Iterable[Given], answer: Callable[[list[Given]], Iterable[Prediction]], size: int = BLOCK
) -> Iterator[Prediction]:
    """One prediction for each of what is given, in order; `answer` receives up to `size` of it at a time."""
    for block in blocks_of(given, size):
        yield from answer(block)


def blocks_of(given: Iterable[Given], size: int) -> Iterator[list[Given]]:
    """What is given in lists of up to `size`; what comes before an error is yielded before it is raised.

    >>> def lines():
    ...     yield "good"
    ...     raise DataError("line 2")
    >>> next(blocks_of(lines(), 8))
    ['good']
    """
    source, failed = iter(given), list[DataError]()

    def until_an_error() -> Iterator[Given]:
        try:
            yield from source
        except DataError as error:
            failed.append(error)

    readable = until_an_error()
    while block := list(islice(readable, size)):
        yield block
    for error in failed:
        raise error


def class_explanations(
    model: SequenceClassifier, tokenizer: Tokenizer, texts: LabelledTexts, lines: list[str]
) -> Iterator[Prediction]:
    """The class of each line, explained: `label<TAB>probability<TAB>text` with marks.

    The record holds the relevance of each piece of the text.
    """
    coded = texts.tokens(lines, tokenizer)
    answers = class_predictions(model, tokenizer, texts, lines)
    reasons = relevance(model, to_score(coded))
    for answer, line, ids, found in zip(answers, lines, coded, reasons, strict=True):
        parts, spans = texts.pieces(line, ids, tokenizer)
        gradient = by_piece(found.gradient, spans)
        why = {"pieces": [part.strip() or part for part in parts], "gradient": gradient}
        if found.attention is not None:
            why["attention"] = by_piece(found.attention, spans)
        yield Prediction(f"{answer.text}\t{marked(parts, gradient)}", {**answer.record, "explanation": why})


def class_predictions(
    model: SequenceClassifier, tokenizer: Tokenizer, texts: LabelledTexts, lines: list[str]
) -> Iterator[Prediction]:
    """The class of each line, as `label<TAB>probability`; the record holds all probabilities."""
    probabilities = class_probabilities(model, to_score(texts.tokens(lines, tokenizer)))
    for line, row in zip(lines, probabilities, strict=True):
        text, record = model.answers.said(row)
        yield Prediction(text, {"text": line, **record})
