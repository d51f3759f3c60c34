"""The classes of sequences of numbers, block by block, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from everstep.networks.classifying import class_probabilities, to_score
from everstep.networks.number_classifier import NumberClassifier
from everstep.networks.number_contributions import NumberContributions, deciding_numbers, number_contributions
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.asked_numbers import AskedSequence
from everstep.runs.predictions import blocks_of
from everstep.runs.task import Prediction

BLOCK = 256
"""Sequences predicted at a time."""


def number_predictions(
    model: NumberClassifier, scaling: NumberScaling, asked: Iterable[AskedSequence], explain: bool = False
) -> Iterator[Prediction]:
    """The class of each sequence, as `label<TAB>probability`; the record holds its name and all probabilities.

    With `explain` the line goes on with the numbers that decide, and the record holds the contribution of each.
    """
    for block in blocks_of(asked, BLOCK):
        batches = to_score([scaling.scaled(one.steps) for one in block])
        probabilities = class_probabilities(model, batches)
        reasons = number_contributions(model, batches) if explain else []
        for place, (one, row) in enumerate(zip(block, probabilities, strict=True)):
            text, record = model.answers.said(row)
            record = {"sequence": one.name, "steps": len(one.steps), **record}
            yield _explained(text, record, scaling, reasons[place]) if explain else Prediction(text, record)


def _explained(text: str, record: dict[str, Any], scaling: NumberScaling, found: NumberContributions) -> Prediction:
    columns = list(scaling.columns) or ["frame"]
    why: dict[str, Any] = {"columns": columns, "gradient": found.gradient.tolist()}
    if found.attention is not None:
        why["attention"] = found.attention.tolist()
    return Prediction(f"{text}\t{deciding_numbers(columns, found.gradient)}", {**record, "explanation": why})
