"""The classes of sequences of numbers, block by block, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from everstep.networks.classifier import Classifier
from everstep.networks.classifying import class_probabilities, to_score
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.asked_numbers import AskedSequence
from everstep.runs.task import Prediction

BLOCK = 256
"""Sequences predicted at a time."""


def number_predictions(
    model: Classifier, scaling: NumberScaling, asked: Iterable[AskedSequence]
) -> Iterator[Prediction]:
    """The class of each sequence, as `label<TAB>probability`; the record holds its name and all probabilities."""
    source = iter(asked)
    while block := list(islice(source, BLOCK)):
        probabilities = class_probabilities(model, to_score([scaling.scaled(one.steps) for one in block]))
        for one, row in zip(block, probabilities, strict=True):
            text, record = model.answers.said(row)
            yield Prediction(text, {"sequence": one.name, "steps": len(one.steps), **record})
