"""What a classifier takes for what, and by which words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from everstep.data import Tokenizer
from everstep.errors import DataError
from everstep.look.confusion import draw_confusion
from everstep.look.passage import Passage
from everstep.look.relevance import draw_relevance
from everstep.measures import ClassMeasures
from everstep.networks.classifying import class_probabilities, to_score
from everstep.networks.sequence_classifier import SequenceClassifier
from everstep.networks.token_passage import pieces

EXAMPLES, LONGEST = 8, 60  # texts shown, and tokens of each


def class_pictures(
    model: SequenceClassifier,
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, str]],
    classes: Sequence[str],
    measured: ClassMeasures,
    out: Path,
    unit: str,
) -> Iterator[tuple[Path, str]]:
    """The confusion of classes, and some texts (with their classes) in the colours of what decides them."""
    yield out / "confusion.png", draw_confusion(measured, classes, out / "confusion.png")
    rows = []
    for line, label in texts[:: max(1, len(texts) // EXAMPLES)][:EXAMPLES]:
        ids = tokenizer.encode(line, line_end=False).tolist()[:LONGEST]
        if ids:
            rows.append(_row(model, tokenizer, ids, label, classes, unit))
    if rows:
        yield out / "words.png", draw_relevance(rows, out / "words.png")


def text_passage(model: SequenceClassifier, tokenizer: Tokenizer, text: str, unit: str) -> Passage:
    """A text as the cells read it; nothing is foreseen step by step."""
    ids = tokenizer.encode(text, line_end=False).tolist()
    if not ids:
        raise DataError("the passage is empty; give a text with some words")
    labels, spans = pieces(tokenizer, ids, unit)
    with torch.no_grad():
        inputs = model.embedding(torch.tensor(ids, device=model.embedding.weight.device))
    shown = "character" if unit == "byte" else unit
    return Passage(model.body.layer, inputs, labels, [last for _, last in spans], unit, shown)


def _row(
    model: SequenceClassifier, tokenizer: Tokenizer, ids: list[int], label: str, classes: Sequence[str], unit: str
) -> tuple[str, list[str], list[float]]:
    labels, spans = pieces(tokenizer, ids, unit)
    shorter = [ids[:first] + ids[last + 1 :] for first, last in spans]
    unlabelled = to_score([np.array(one, np.int64) for one in [ids, *shorter]])
    log_p = np.log(class_probabilities(model, unlabelled))
    second, best = log_p[0].argsort()[-2:]
    lead = log_p[:, best] - log_p[:, second]
    verdict = f"wrong: it is {label}" if label and classes[best] != label else "right"
    title = f"{classes[best]} {np.exp(log_p[0, best]):.2f}" + (f" ({verdict})" if label else "")
    return title, labels, (lead[0] - lead[1:]).tolist()
