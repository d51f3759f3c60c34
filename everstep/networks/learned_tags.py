"""Vocabularies and tag columns of a tagger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from everstep.data.readers.tagged_columns import Sentence
from everstep.data.readers.tagged_formats import Format
from everstep.data.word_features import Coded, WordVocabulary
from everstep.errors import ConfigError, RunError
from everstep.networks.tag_columns import TagColumn
from everstep.storage.reading import parse_json, read_small, reason


@dataclass(frozen=True)
class Learned:
    """Vocabularies and tag columns fitted to training sentences.

    Attributes:
        words: the vocabulary of words, characters and affixes.
        columns: the tag columns.
        format: the format of the training files and of predictions.
        separator: the column separator of that format.
    """

    words: WordVocabulary
    columns: tuple[TagColumn, ...]
    format: Format
    separator: str

    def coded(self, sentences: Sequence[Sentence]) -> Coded:
        """The encoded sentences; without tags if they have none."""
        has_tags = bool(sentences) and bool(sentences[0].tags)
        columns = [
            [number for sentence in sentences for number in column.numbers(sentence.tags[place])]
            if has_tags
            else np.zeros(sum(len(sentence.words) for sentence in sentences), np.int64)
            for place, column in enumerate(self.columns)
        ]
        tags = np.stack([np.asarray(column, np.int64) for column in columns], axis=1)
        features = [[sentence.features[place] for sentence in sentences] for place in range(len(self.words.columns))]
        return self.words.coded([sentence.words for sentence in sentences], features, tags)

    def check_spans(self, outside_penalty: float, select: str | None) -> None:
        """Refuse settings that need tags of spans.

        Raises:
            ConfigError: no column has spans, or the first has none but `select` is one of their measures.
        """
        if outside_penalty and not any(column.learned for column in self.columns):
            raise ConfigError("decode.outside_penalty: expected 0 where no column has tags of spans, which have an O")
        if select in ("f1", "precision", "recall") and self.columns[0].scheme is None:
            raise ConfigError(
                f"train.select: expected accuracy or loss, since the tags of column {self.columns[0].name} are no "
                f"spans, such as B-PER and O; got {select}; set train.select=accuracy"
            )

    def summary(self) -> list[str]:
        """Lines on the tags of each column and the size of the vocabulary."""
        words, characters, _ = self.words.sizes()
        tags = [
            f"{len(column.tags):,} tags in column {column.name}: {', '.join(column.tags[:20])}"
            f"{', …' if len(column.tags) > 20 else ''}"
            + (f" ({column.learned}; {column.scheme} in the data)" if column.scheme else "")
            for column in self.columns
        ]
        return [*tags, f"vocabulary: {words:,} words, {characters:,} characters"]

    def to_bytes(self) -> bytes:
        """The content of `vocabulary.json`."""
        raw = {
            "format": self.format,
            "separator": self.separator,
            "columns": [column.to_json() for column in self.columns],
            "words": self.words.to_json(),
        }
        return (json.dumps(raw, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")

    @classmethod
    def load(cls, path: Path) -> Learned:
        """Read the result of `to_bytes` from a file.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            raw: Any = parse_json(read_small(path, 1 << 30).decode("utf-8", "surrogatepass"))
            if raw["format"] not in get_args(Format):
                raise ValueError(f"its format is {raw['format']!r}")
            columns = tuple(TagColumn.from_json(column) for column in raw["columns"])
            return cls(WordVocabulary.from_json(raw["words"]), columns, raw["format"], str(raw["separator"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: missing or damaged ({reason(error)})") from None
