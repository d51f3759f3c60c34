"""The classes of labelled texts as answers of a head, and their file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from everstep.data.readers.labelled import Labelled
from everstep.errors import DataError, RunError
from everstep.networks.answer_kinds import Ordered, Several, split_labels
from everstep.networks.answers import Answers, OneOf
from everstep.networks.classifying import ClassSection
from everstep.networks.document_pieces import READ_OUTS
from everstep.networks.layers import ReadOutSection
from everstep.networks.sequence_classifier import ClassifierSection
from everstep.runs.labelled_section import LabelledSection
from everstep.runs.labelled_splits import ExamplesSection
from everstep.storage.reading import read_json


def disagreements(data: LabelledSection, model: ClassifierSection, objective: ClassSection) -> Iterator[str]:
    """Incompatible keys of several sections."""
    yield from kind_disagreements(data, objective)
    several, ordinal = data.label_separator is not None, objective.ordinal
    if objective.bptt is not None:
        if model.reader != "flat" or data.paired:
            yield "objective.bptt: expected null beside model.reader=hierarchical and pairs of texts"
        yield from needs_whole(model)
    if model.ngrams and (several or ordinal):
        yield "model.ngrams: expected 0 beside data.label_separator and objective.ordinal: it is of one class of many"
    if model.reader != "flat" and data.paired:
        yield f"model.reader: expected flat where data.text names two columns; got {model.reader}"
    if model.reader != "flat" and data.unit not in ("words", "chars", "bytes"):
        yield f"model.reader: expected data.unit words, chars or bytes, of which marks end a sentence; got {data.unit}"


def kind_disagreements(data: ExamplesSection, objective: ClassSection) -> Iterator[str]:
    """Keys that the kind of answers excludes."""
    several, ordinal = data.label_separator is not None, objective.ordinal
    if several and ordinal:
        yield "objective.ordinal: expected false beside data.label_separator, whose labels have no order"
    if several and objective.class_weights != "none":
        yield "objective.class_weights: expected none beside data.label_separator; got balanced"
    if several and objective.label_smoothing:
        yield "objective.label_smoothing: expected 0 beside data.label_separator"
    if ordinal and data.merge is not None:
        yield "data.merge: expected null beside objective.ordinal; data.classes joins classes before they are learned"


def needs_whole(model: ReadOutSection) -> Iterator[str]:
    """Keys that require whole sequences, beside objective.bptt, which reads them in pieces."""
    if model.bidirectional:
        yield "model.bidirectional: expected false beside objective.bptt, which reads in pieces, onwards"
    if model.read_out not in READ_OUTS:
        yield f"model.read_out: expected one of {', '.join(READ_OUTS)} beside objective.bptt; got {model.read_out}"
    if model.variational:
        yield "model.variational: expected false beside objective.bptt: one mask is for a whole sequence"


def classes_of(found: Labelled, data: ExamplesSection, objective: ClassSection) -> tuple[str, ...]:
    """The class names of a head, in its order.

    Raises:
        DataError: there is only one label, or an ordered head without a known order of classes.
    """
    if data.label_separator is not None:
        labels = {label for given in set(found.labels) for label in split_labels(given, data.label_separator)}
        if len(labels) < 2:
            raise DataError(
                f"data.train: expected at least two labels, separated by data.label_separator="
                f"{data.label_separator!r}; got {', '.join(map(repr, labels)) or 'none'}"
            )
        return tuple(sorted(labels))
    if not objective.ordinal:
        return found.classes
    if data.classes is not None:
        return tuple(name for name in data.classes if name in set(found.labels))
    try:
        return tuple(sorted(found.classes, key=float))
    except ValueError:
        shown = ", ".join(map(repr, found.classes[:5]))
        raise DataError(
            f"objective.ordinal: expected numbers as classes, or data.classes, whose order is theirs; got {shown}; "
            "for example data.classes={bad: bad, fair: fair, good: good}"
        ) from None


def answers_of(classes: Sequence[str], data: ExamplesSection, objective: ClassSection) -> Answers:
    """The kind of answers for examples with these classes: one class, an ordered class, or several labels."""
    if data.label_separator is not None:
        return Several(classes, data.label_separator)
    if objective.ordinal:
        return Ordered(classes)
    return OneOf(classes, data.merge, objective.label_smoothing)


def written_classes(classes: Sequence[str]) -> bytes:
    """The content of `classes.json`: the class names in the order of their ids."""
    return (json.dumps(list(classes), ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names in `classes.json`.

    Raises:
        RunError: the file is missing or damaged.
    """
    found = read_json(path, 1 << 26)
    if not (isinstance(found, list) and len(found) > 1 and all(isinstance(name, str) for name in found)):
        raise RunError(f"{path}: expected a list of two class names or more")
    return tuple(found)
