"""The entries of a large JSON array, read piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from everstep.errors import DataError

_SPACE = re.compile(r"[ \t\n\r]*")
_LARGEST = 1 << 26
"""The most characters of one entry, so that a damaged file does not fill memory."""


def beginning(pieces: Iterator[str]) -> str:
    """The first two characters of a text that are no white space, or fewer at its end; reads no further.

    >>> beginning(iter([" \\n", "[", " {}"])), beginning(iter([" ["]))
    ('[{', '[')
    """
    return "".join(islice((character for piece in pieces for character in piece if not character.isspace()), 2))


def array_entries(pieces: Iterator[str], where: str) -> Iterator[tuple[int, Any]]:
    """The entries of a JSON array, each with its number from 1, in memory that is bounded by the largest entry.

    >>> list(array_entries(iter(['[{"a": ', '1}, {"a"', ": 2}]"]), "t.json"))
    [(1, {'a': 1}), (2, {'a': 2})]

    Args:
        pieces: the text, cut anywhere.
        where: the name of the text, for errors.

    Raises:
        DataError: the text is no JSON array; the message has the number of the entry.
    """
    text = _Window(pieces)
    if text.next_character() != "[":
        raise DataError(f"{where}: expected a JSON array, which begins with [")
    text.place += 1
    number = 0
    if text.next_character() == "]":
        text.place += 1
    else:
        while True:
            number += 1
            text.next_character()
            yield number, text.value(f"{where}, entry {number}")
            follows = text.next_character()
            text.place += 1
            if follows == "]":
                break
            if follows != ",":
                came = repr(follows) if follows else "the end of the file"
                raise DataError(f"{where}: expected , or ] after entry {number} of the array, got {came}")
    if follows := text.next_character():
        raise DataError(f"{where}: expected nothing after the array of {number:,} entries, got {follows!r}")


class _Window:
    """The part of a text that is being read; `place` is where."""

    def __init__(self, pieces: Iterator[str]):
        self._pieces, self.text, self.place = pieces, "", 0

    def more(self) -> bool:
        """Read as much as is unread, so that repeated attempts cost no more than twice the text; False at the end."""
        unread = self.text[self.place :]
        parts, size = [unread], 0
        while size <= len(unread) and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            size += len(piece)
        self.text, self.place = "".join(parts), 0
        return size > 0

    def next_character(self) -> str:
        """The next character that is no white space, "" at the end; `place` is there."""
        while True:
            found = _SPACE.match(self.text, self.place)
            self.place = self.place if found is None else found.end()
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def value(self, where: str) -> Any:
        """The value that begins here."""
        decoder = json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.place)
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.place > _LARGEST or isinstance(error, RecursionError) or not self.more():
                    shown = self.text[self.place : self.place + 60]
                    reason = getattr(error, "msg", error)
                    raise DataError(f"{where}: is no JSON ({reason}): {shown!r}") from None
                continue
            if end < len(self.text):
                self.place = end
                return value
            length = end - self.place  # a number may go on
            if not self.more():
                self.place = length
                return value
