"""Splitting a text into words and punctuation marks."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_JOINERS = "\u200c\u200d"


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order.

    A word consists of letters, digits and underscores, with their combining marks; an apostrophe inside a word is part
    of it. Any other character except white space is a word by itself, with its combining marks.

    >>> words("The food was good, not bad -- it isn't!")
    ['The', 'food', 'was', 'good', ',', 'not', 'bad', '-', '-', 'it', "isn't", '!']
    """
    return _pattern(text.isascii()).findall(text)


@cache
def _pattern(ascii_alone: bool) -> re.Pattern[str]:
    marks = "" if ascii_alone else re.escape("".join(filter(_is_mark, map(chr, range(0x300, 0xE01F0))))) + _JOINERS
    word, more = r"\w", rf"[\w{marks}]*"
    return re.compile(rf"{word}{more}(?:['’]{word}{more})*|[^\w\s]" + (f"[{marks}]*" if marks else ""))


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"
