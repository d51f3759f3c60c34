"""Words and marks of punctuation of a text, each by itself."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_JOINERS = "\u200c\u200d"


def words(text: str) -> list[str]:
    """Words, and marks that stand between them, in order.

    A word is letters, digits and underscores with the accents and vowel signs that belong to them; an apostrophe inside
    is part of it. Any other character that is no space is a word of its own, with the marks that change it.

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
