"""The labels of a recogniser: characters or words, and texts as sequences of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from everstep.errors import RunError
from everstep.storage.reading import json_text, parse_json, read_small, reason

Unit = Literal["characters", "words"]
LARGEST = 1 << 26


@dataclass(frozen=True)
class Alphabet:
    """K labels.

    Attributes:
        symbols: the text of each label.
        unit: what a label is.
    """

    symbols: tuple[str, ...]
    unit: Unit

    @classmethod
    def of(cls, texts: Iterable[str], unit: Unit) -> Alphabet:
        """Those of texts, sorted.

        >>> Alphabet.of(["two one", "one"], "words").symbols
        ('one', 'two')
        """
        return cls(tuple(sorted({symbol for text in texts for symbol in _parts(text, unit)})), unit)

    def labels(self, text: str) -> list[int] | None:
        """The labels of a text; None if it has a symbol that there is not.

        >>> Alphabet.of(["abc"], "characters").labels("cab"), Alphabet.of(["abc"], "characters").labels("d")
        ([2, 0, 1], None)
        """
        found = [self._number.get(symbol, -1) for symbol in _parts(text, self.unit)]
        return None if -1 in found else found

    def text(self, labels: Sequence[int]) -> str:
        """The text of labels, with single spaces between words."""
        joined = ("" if self.unit == "characters" else " ").join(self.symbols[label] for label in labels)
        return " ".join(joined.split())

    def strange(self, text: str) -> set[str]:
        """The symbols of a text that there are not."""
        return set(_parts(text, self.unit)) - self._number.keys()

    @cached_property
    def _number(self) -> dict[str, int]:
        return {symbol: place for place, symbol in enumerate(self.symbols)}

    def to_bytes(self) -> bytes:
        """The content as JSON in UTF-8."""
        return (json_text(asdict(self), ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> Alphabet:
        """Read a file that `to_bytes` wrote.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            raw: dict[str, Any] = parse_json(read_small(path, LARGEST))
            return cls(tuple(raw["symbols"]), raw["unit"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: missing or damaged ({reason(error)})") from None


def _parts(text: str, unit: Unit) -> Sequence[str]:
    return text if unit == "characters" else text.split()
