"""Tag columns: the tags of the data, the tags that a model learns, and the conversion between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.errors import DataError
from everstep.measures.tag_schemes import (
    OUTSIDE,
    Scheme,
    all_tags,
    allowed,
    broken,
    converted,
    letter_and_type,
    recognised,
    spans,
    tags_of,
)
from everstep.networks.sequence_tagger import Allowed

Ints = NDArray[np.int64]
UNSEEN = -1
"""The id of a tag not seen in training."""


@dataclass(frozen=True)
class TagColumn:
    """One column of tags.

    Attributes:
        name: the name of the column, for tables.
        scheme: the scheme of the data's tags; None if they are not span tags.
        learned: the scheme that the model learns.
        tags: the tags that the model learns, by id.

    Example:
        >>> column = TagColumn.of("ner", [["I-PER", "I-PER", "O"]], "auto", "iobes")
        >>> column.scheme, column.tags
        ('iob1', ('O', 'B-PER', 'I-PER', 'E-PER', 'S-PER'))
        >>> column.numbers(["I-PER", "I-PER", "O"]), column.written([4, 0])
        ([1, 3, 0], ['I-PER', 'O'])
    """

    name: str
    scheme: Scheme | None
    learned: Scheme | None
    tags: tuple[str, ...]

    @classmethod
    def of(cls, name: str, sentences: Sequence[Sequence[str]], scheme: str, learned: str) -> TagColumn:
        """The column of training sentences.

        Args:
            name: the name of the column.
            sentences: the tags of each sentence.
            scheme: a `Scheme`, "none", or "auto" for the result of `recognised`.
            learned: a `Scheme`, or "same".

        Raises:
            DataError: `scheme` is a span scheme, but a tag is not a span tag.
        """
        known: Any = recognised(sentences) if scheme == "auto" else None if scheme == "none" else scheme
        different = sorted({tag for tags in sentences for tag in tags})
        if known is None:
            return cls(name, None, None, tuple(different))
        if wrong := [tag for tag in different if letter_and_type(tag) is None]:
            raise DataError(
                f"data.scheme={scheme}: expected tags of spans, such as B-PER and O, in column {name}; got {wrong[0]!r}"
            )
        target: Any = known if learned == "same" else learned
        return cls(name, known, target, tuple(all_tags(different, target)))

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TagColumn:
        """The column that `to_json` wrote.

        Raises:
            KeyError, TypeError: `raw` is malformed.
        """
        return cls(str(raw["name"]), raw["scheme"], raw["learned"], tuple(map(str, raw["tags"])))

    def to_json(self) -> dict[str, Any]:
        """The column as a JSON value."""
        return {"name": self.name, "scheme": self.scheme, "learned": self.learned, "tags": list(self.tags)}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {tag: number for number, tag in enumerate(self.tags)}

    def numbers(self, tags: Sequence[str]) -> list[int]:
        """The ids of a sentence's tags; −1 for a tag not seen in training.

        Spans are read leniently, so that what is learned obeys the scheme where the data do not.
        """
        if self.scheme is not None and self.learned is not None:
            own = tags_of(spans(tags, self.scheme), len(tags), self.learned)
            # an invalid tag would be read as O
            return [
                self._numbers.get(new, UNSEEN) if old == OUTSIDE or new != OUTSIDE else UNSEEN
                for old, new in zip(tags, own, strict=True)
            ]
        return [self._numbers.get(tag, UNSEEN) for tag in tags]

    def written(self, numbers: Sequence[int]) -> list[str]:
        """The tags of a sentence from their ids, in the scheme of the data."""
        tags = [self.tags[number] for number in numbers]
        if self.scheme is None or self.learned is None:
            return tags
        return converted(tags, self.learned, self.scheme)

    @property
    def outside(self) -> str:
        """The tag for a line with columns but no word."""
        return "_" if self.scheme is None else OUTSIDE

    def bias(self, outside_penalty: float) -> Tensor | None:
        """(K,) what is added to the scores of the tags so that O is the less likely; None where there is no O."""
        if not outside_penalty or self.learned is None or OUTSIDE not in self.tags:
            return None
        return -outside_penalty * torch.tensor([float(tag == OUTSIDE) for tag in self.tags])

    def allowed(self) -> Allowed | None:
        """The allowed transitions, first tags and last tags of the learned scheme; None if all are."""
        if self.learned is None:
            return None
        scheme, tags = self.learned, self.tags
        return (
            torch.tensor([[allowed(before, after, scheme) for after in tags] for before in tags]),
            torch.tensor([allowed(None, tag, scheme) for tag in tags]),
            torch.tensor([allowed(tag, None, scheme) for tag in tags]),
        )

    def breaks(self, tags: Sequence[str]) -> Iterator[tuple[int, str]]:
        """The indices of words whose tag violates the scheme, each with a description."""
        if self.scheme is None:
            return
        for place in broken(tags, self.scheme):
            before = tags[place - 1] if place else "the beginning"
            after = tags[place] if place < len(tags) else "the end"
            yield min(place, len(tags) - 1), f"{after} after {before} is no transition of {self.scheme}"
