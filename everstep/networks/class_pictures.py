"""Pictures of a classifier: confusion, reliability, and relevance of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from everstep.data import Tokenizer
from everstep.errors import DataError
from everstep.look.confusion import draw_confusion
from everstep.look.passage import Passage
from everstep.look.relevance import ATTENTION, GRADIENT, LEFT_OUT, draw_relevance
from everstep.look.reliability import draw_reliability
from everstep.measures import ClassMeasures, LabelMeasures
from everstep.networks.answers import Figures, Ints
from everstep.networks.classifier import Classifier
from everstep.networks.classifying import class_probabilities, to_score
from everstep.networks.sequence_classifier import SequenceClassifier
from everstep.networks.token_contributions import Relevance, by_piece, relevance
from everstep.networks.token_passage import pieces

EXAMPLES, LONGEST = 8, 60  # texts shown, and most tokens of each


class Shown(NamedTuple):
    """A text in a picture: its class ("" if unknown), tokens, pieces, and the first and last token of each piece."""

    label: str
    ids: Ints
    pieces: list[str]
    spans: list[tuple[int, int]]


def figure_pictures(model: Classifier, measured: Figures, out: Path, unit: str = "text") -> Iterator[tuple[Path, str]]:
    """Draw the confusion matrix if each text has one class, and the reliability diagram."""
    if isinstance(measured, ClassMeasures):
        yield out / "confusion.png", draw_confusion(measured, model.answers.names, out / "confusion.png", unit)
    if measured.reliability is not None:
        heat = None if model.temperature is None else float(model.temperature)
        path, several = out / "reliability.png", isinstance(measured, LabelMeasures)
        yield path, draw_reliability(measured.reliability, path, heat, several, unit)


def word_pictures(model: SequenceClassifier, shown: Sequence[Shown], out: Path) -> Iterator[tuple[Path, str]]:
    """Draw texts coloured by relevance: by leaving out each piece, by gradient × input, by attention."""
    shown = [one for one in shown if len(one.ids)]
    if not shown:
        return
    found = relevance(model, to_score([one.ids for one in shown]))
    titles = [_title(model, one) for one in shown]

    def rows(values: Sequence[Sequence[float]]) -> list[tuple[str, list[str], Sequence[float]]]:
        return [(title, one.pieces, some) for title, one, some in zip(titles, shown, values, strict=True)]

    def summed(of: Relevance, one: Shown, name: str) -> list[float]:
        return by_piece(getattr(of, name), one.spans)

    yield out / "words.png", draw_relevance(rows([_left_out(model, one) for one in shown]), out / "words.png", LEFT_OUT)
    for name, what in (("gradient", GRADIENT), ("attention", ATTENTION)):
        if getattr(found[0], name) is not None:
            path = out / f"words-{name}.png"
            values = [summed(of, one, name) for of, one in zip(found, shown, strict=True)]
            yield path, draw_relevance(rows(values), path, what)


def text_passage(model: SequenceClassifier, tokenizer: Tokenizer, text: str, unit: str) -> Passage:
    """A text as the cells read it, without step-by-step targets."""
    ids = tokenizer.encode(text, line_end=False).tolist()
    if not ids:
        raise DataError("the passage is empty; give a text with some words")
    labels, spans = pieces(tokenizer, ids, unit)
    with torch.no_grad():
        inputs = model.embedding(torch.tensor(ids, device=model.embedding.weight.device))
    shown = "character" if unit == "byte" else unit
    return Passage(model.body.layer, inputs, labels, [last for _, last in spans], unit, shown)


def _title(model: SequenceClassifier, one: Shown) -> str:
    (p,) = class_probabilities(model, to_score([one.ids]))
    answer, record = model.answers.said(p)
    label = str(record["label"])
    verdict = "right" if label == one.label else f"wrong: it is {one.label}"
    return answer.replace("\t", " ") + (f" ({verdict})" if one.label else "")


def _left_out(model: SequenceClassifier, one: Shown) -> list[float]:
    """The decrease of the answer's lead without each piece, in nats."""
    shorter = [np.concatenate([one.ids[:first], one.ids[last + 1 :]]) for first, last in one.spans]
    log_p = np.log(class_probabilities(model, to_score([one.ids, *shorter])))
    second, best = log_p[0].argsort()[-2:]
    lead = log_p[:, best] - log_p[:, second]
    return (lead[0] - lead[1:]).tolist()  # type: ignore[no-any-return]
