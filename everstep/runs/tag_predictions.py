"""Predictions of tags, as text and as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from everstep.data.readers.tagged_columns import Sentence
from everstep.data.readers.tagged_formats import Format, with_tags
from everstep.errors import DataError
from everstep.measures.tag_schemes import spans
from everstep.networks.learned_tags import Learned
from everstep.networks.sequence_tagger import SequenceTagger
from everstep.networks.tag_columns import TagColumn
from everstep.networks.tag_decoding import DecodedTags, blocks, decoded
from everstep.runs.tagged_data import TaggedSection, format_asked, sentences_to_tag
from everstep.runs.task import Asked, Prediction

SOURCE = "the lines to tag"


def tag_predictions(
    model: SequenceTagger, lines: Iterable[str], learned: Learned, section: TaggedSection, asked: Asked
) -> Iterator[Prediction]:
    """Each sentence in its original form, with the predicted tags as additional columns (or keys).

    With probabilities, each tag column is followed by a column of p. With n best, each is a separate sentence, below a
    comment (or with keys) that gives its rank and log p.

    Raises:
        ConfigError: there is no such format.
        DataError: a line cannot be read; raised after the predictions for the lines before it.
    """
    format = format_asked(asked.format, learned.format)
    read = sentences_to_tag((line.removesuffix("\n") for line in lines), learned, section, format, SOURCE)
    if asked.format is None and format != "text":
        read = _as_trained(read, learned)
    for block in blocks(read):
        some = [sentence for sentence in block if sentence.words]
        every = iter(
            decoded(model, learned.coded(some), learned.columns, asked.n_best, asked.probabilities) if some else []
        )
        for sentence in block:
            found = next(every) if sentence.words else []
            text = _text(sentence, found, learned, format)
            yield Prediction(text, _record(sentence, found, learned.columns))


def _as_trained(read: Iterator[Sentence], learned: Learned) -> Iterator[Sentence]:
    """The sentences; an error in the first one says that there are other formats, and plain text is one."""
    try:
        first = next(read)
    except StopIteration:
        return
    except DataError as error:
        names = ", ".join(get_args(Format))
        raise DataError(f"{error}; if these lines have another format, name it: --format, one of {names}") from None
    columns = list(zip(first.features, learned.words.columns, strict=True))
    if (
        columns
        and first.words
        and first.separator == " "
        and not any(set(found) & set(seen) for found, seen in columns)
    ):
        raise DataError(
            f"{SOURCE}, line {first.numbers[0]}: expected one word a line, with its columns; got "
            f"{first.lines[first.places[0]][:60]!r}, and training never saw {first.features[0][0][:40]!r} there. "
            "Plain text lacks the columns that this model reads beside words; if it is a word, add --format columns"
        )
    yield first
    yield from read


def _text(sentence: Sentence, found: list[DecodedTags], learned: Learned, format: Format) -> str:
    """The printed form of a sentence."""
    if not found:
        empty = {column.name: list[str]() for column in learned.columns}
        is_json = format == "jsonl" and bool(sentence.lines[0].strip(" \t\ufeff"))
        return with_tags(sentence, format, empty if is_json else {}, "_")
    ranks = max(len(of.tags) for of in found)
    texts = []
    for rank in range(ranks):
        added: dict[str, list[str]] = {}
        for column, of in zip(learned.columns, found, strict=True):
            added[column.name] = of.tags[min(rank, len(of.tags) - 1)]
            if of.marginals is not None:
                best = of.marginals[range(len(sentence.words)), of.learned]
                added[f"{column.name}_probability"] = [f"{p:.4f}" for p in best]
        text = with_tags(sentence, format, added, learned.columns[0].outside)
        if ranks > 1:
            log_p = [of.log_p[min(rank, len(of.log_p) - 1)] for of in found]
            text = _ranked(text, rank + 1, log_p, format, last=rank == ranks - 1)
        texts.append(text)
    return "\n".join(texts)


def _ranked(text: str, rank: int, log_p: Sequence[float], format: Format, last: bool) -> str:
    """One of n best, with its rank and log p, followed by a blank line."""
    told = " ".join(f"{nats:.4f}" for nats in log_p)
    if format == "jsonl":
        return f'{text[:-1]}, "rank": {rank}, "log_p": [{", ".join(f"{nats:.4f}" for nats in log_p)}]}}'
    return f"# rank {rank}, log p {told}\n{text}" + ("" if last or text.endswith("\n") else "\n")


def _record(sentence: Sentence, found: list[DecodedTags], columns: Sequence[TagColumn]) -> dict[str, Any]:
    """The record of a sentence: tags, spans and, if requested, log p, p of each learned tag per word, and the n best.

    Several columns give the same entries for each column, under its name.
    """
    if not found:
        return {}
    every = [_of_column(sentence.words, of, column) for of, column in zip(found, columns, strict=True)]
    record = {"tokens": sentence.words, **every[0]}
    if len(columns) > 1:
        record["columns"] = {column.name: of for column, of in zip(columns, every, strict=True)}
    return record


def _of_column(words: list[str], found: DecodedTags, column: TagColumn) -> dict[str, Any]:
    record: dict[str, Any] = {"tags": found.tags[0], **({"log_p": found.log_p[0]} if found.log_p else {})}
    if column.scheme is not None:
        record["spans"] = [
            {"start": span.start, "stop": span.stop, "type": span.type, "text": " ".join(words[span.start : span.stop])}
            for span in spans(found.tags[0], column.scheme)
        ]
    if found.marginals is not None:
        record["probabilities"] = [
            {tag: round(float(p), 6) for tag, p in zip(column.tags, row, strict=True) if p >= 5e-7}
            for row in found.marginals
        ]
    if len(found.tags) > 1:
        record["n_best"] = [{"tags": tags, "log_p": nats} for tags, nats in zip(found.tags, found.log_p, strict=True)]
    return record
