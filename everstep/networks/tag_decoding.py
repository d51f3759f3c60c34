"""Prediction and measures of tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.cancellation import check_cancelled
from everstep.data.readers.tagged_columns import Sentence
from everstep.data.tagged_batches import TaggedBatches
from everstep.data.word_features import Coded, WordVocabulary
from everstep.errors import DataError
from everstep.measures import ClassMeasures, class_measures, span_measures
from everstep.measures.tag_schemes import letter_and_type
from everstep.networks.sequence_tagger import SequenceTagger
from everstep.networks.tag_columns import UNSEEN, TagColumn
from everstep.rivals.frequent_tags import most_frequent_tags

SCORED_WORDS = 8192
"""Most padded words in a batch for evaluation."""


class DecodedTags(NamedTuple):
    """The prediction for a sentence of N words in one column.

    Attributes:
        tags: the most probable sequences, best first, in the scheme of the data.
        learned: the best sequence as ids of learned tags.
        log_p: log p of each sequence, in nats, if several sequences or probabilities were requested.
        marginals: (N, K) p of each learned tag at each word, if requested.
    """

    tags: list[list[str]]
    learned: list[int]
    log_p: list[float]
    marginals: NDArray[Any] | None


@torch.inference_mode()
def decoded(
    model: SequenceTagger,
    coded: Coded,
    columns: Sequence[TagColumn],
    n_best: int = 1,
    marginals: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[DecodedTags]]:
    """The predictions for each sentence, in order, one per column."""
    model.eval()
    device = model.reader.embedding.weight.device
    batches = TaggedBatches(coded, 256, shuffle=False, max_tokens=SCORED_WORDS)
    found: list[list[DecodedTags]] = [[] for _ in coded.lengths]
    for index in range(len(batches)):
        check_cancelled()
        batch = batches.batch(0, index)
        for column, of_batch in zip(columns, model.decode(batch.to(device), n_best, marginals), strict=True):
            tags = of_batch.tags.tolist()
            log_p = [[]] * len(tags) if of_batch.log_p is None else of_batch.log_p.tolist()
            for row, (place, length) in enumerate(zip(batch.places.tolist(), batch.lengths.tolist(), strict=True)):
                there = [nats for nats in log_p[row] if nats > -np.inf]
                sequences = [some[:length] for some in tags[row][: len(there) or 1]]
                every = None if of_batch.marginals is None else of_batch.marginals[row, :length].cpu().numpy()
                found[place].append(
                    DecodedTags([column.written(some) for some in sequences], sequences[0], there, every)
                )
        progress(index + 1, len(batches))
    return found


@torch.inference_mode()
def mean_nats(model: SequenceTagger, coded: Coded) -> float:
    """−log p of the tags per word, summed over columns, on the sentences without unknown tags."""
    model.eval()
    device = model.reader.embedding.weight.device
    batches = TaggedBatches(coded, 256, shuffle=False, max_tokens=SCORED_WORDS)
    total, count = 0.0, 0
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        total += float(model.losses(batch.to(device)).double().sum())
        count += batch.count
    return total / max(count, 1)


def tag_figures(
    model: SequenceTagger,
    sentences: Sequence[Sentence],
    coded: Coded,
    columns: Sequence[TagColumn],
    words: WordVocabulary,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The measures of a model on tagged sentences, as JSON values; see `column_figures`.

    The measures of the first column are at the top level; with several columns, those of each are also in `columns`,
    by name.
    """
    predictions = decoded(model, coded, columns, progress=progress)
    tags = [[found[place].tags[0] for found in predictions] for place in range(len(columns))]
    shared = {
        "sentences": len(sentences),
        "words": int(coded.lengths.sum()),
        "unknown_words": sum(not words.knows(word) for sentence in sentences for word in sentence.words),
        "unseen_tags": int((coded.tags == UNSEEN).sum()),
        "loss": mean_nats(model, coded),
    }
    return {**shared, **figures_of(sentences, tags, columns, words)}


def figures_of(
    sentences: Sequence[Sentence],
    predictions: Sequence[Sequence[Sequence[str]]],
    columns: Sequence[TagColumn],
    words: WordVocabulary,
) -> dict[str, Any]:
    """The measures of predicted tags, given for each column and sentence."""
    known = [[words.knows(word) for word in sentence.words] for sentence in sentences]
    figures = [
        column_figures([sentence.tags[place] for sentence in sentences], predictions[place], known, column)
        for place, column in enumerate(columns)
    ]
    if len(columns) == 1:
        return figures[0]
    flat = [{name: value for name, value in of.items() if name != "types"} for of in figures]
    return {**figures[0], "columns": {of.name: some for of, some in zip(columns, flat, strict=True)}}


def frequent_tags_rival(
    train: Sequence[Sentence], others: Sequence[Sentence], columns: Sequence[TagColumn], words: WordVocabulary
) -> list[dict[str, Any]]:
    """The measures of the baseline that tags each word with its most frequent tag in training."""
    seen, asked = ([sentence.words for sentence in some] for some in (train, others))
    tags = [
        most_frequent_tags(seen, [sentence.tags[place] for sentence in train], asked) for place in range(len(columns))
    ]
    found = figures_of(others, tags, columns, words)
    kept: dict[str, Any] = {name: found[name] for name in ("f1", "accuracy", "unknown_accuracy") if name in found}
    return [{"name": "most frequent tag of a word", **kept}]


def column_figures(
    targets: Sequence[Sequence[str]],
    predictions: Sequence[Sequence[str]],
    known: Sequence[Sequence[bool]],
    column: TagColumn,
) -> dict[str, Any]:
    """The measures of one column.

    Accuracy in total and on words seen and not seen in training; for spans also precision, recall and F1 as in
    conlleval, the same with only spans that obey the scheme (strict), and those of each type.
    """
    right = np.array([old == new for pair in zip(targets, predictions, strict=True) for old, new in zip(*pair)], bool)  # noqa: B905
    seen = np.array([one for some in known for one in some], bool)
    found: dict[str, Any] = {"accuracy": _share(right)}
    found |= {"known_accuracy": _share(right[seen]), "unknown_accuracy": _share(right[~seen])}
    if column.scheme is None:
        return found
    measured = span_measures(targets, predictions, column.scheme)
    strict = {f"strict_{name}": value for name, value in measured.strict.figures.items()}
    types = {kind: {**of.figures, "spans": of.there} for kind, of in measured.types.items()}
    return {**found, **measured.total.figures, "spans": measured.total.there, **strict, "types": types}


def _share(right: NDArray[np.bool_]) -> float | None:
    """The share of True; None for an empty array."""
    return float(right.mean()) if len(right) else None


def tag_confusion(
    targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], column: TagColumn
) -> tuple[ClassMeasures, list[str]]:
    """The confusion of tags, of spans by type, and their names."""
    spelled = [
        [_kind(tag) if column.scheme else tag for tags in sentences for tag in tags]
        for sentences in (targets, predictions)
    ]
    names = sorted({tag for tags in spelled for tag in tags})
    numbers = {name: number for number, name in enumerate(names)}
    ids = [[numbers[tag] for tag in tags] for tags in spelled]
    return class_measures(np.array(ids[0]), np.array(ids[1]), len(names)), names


def _kind(tag: str) -> str:
    letter, kind = letter_and_type(tag) or ("", tag)
    return kind or letter


def blocks(sentences: Iterator[Sentence], words: int = 4096, most: int = 1024) -> Iterator[list[Sentence]]:
    """Sentences in lists of about `words` words; those before an error are yielded before it is raised."""
    block: list[Sentence] = []
    held = 0
    try:
        for sentence in sentences:
            block.append(sentence)
            held += len(sentence.words)
            if held >= words or len(block) >= most:
                yield block
                block, held = [], 0
    except DataError:
        yield block
        raise
    yield block
