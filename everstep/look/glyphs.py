"""Fonts for characters, and a substitute for characters without a font."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager

USUAL = "DejaVu Sans Mono", "DejaVu Sans"
LIKELY = "cjk", "han", "hei", "song", "ming", "gothic", "noto", "unifont", "droid", "arial unicode", "emoji", "symbol"
"""Parts of the names of fonts that are likely to have rare characters; searched first."""
UNFIT = "last resort", "stixnonunicode", "cmb", "cme", "cmm", "cmr", "cms", "cmt"
MOST = 200
"""Most fonts to open."""


def font_of(character: str) -> str | None:
    """The file of a font that has a character: a default font, else any installed one; None if there is none.

    Private-use characters, which differ between fonts, count as missing.
    """
    if unicodedata.category(character) == "Co":
        return None
    code = ord(character)
    for path in _usual():
        if code in _characters(path):
            return path
    return _other(code)


def usual() -> str:
    """The file of the default monospaced font."""
    return _usual()[0]


def has(path: str, character: str) -> bool:
    """Whether a font has a character."""
    return ord(character) in _characters(path)


def note(texts: Iterable[str], page: str) -> str:
    """A sentence for the caption about characters without a font, or "".

    Args:
        texts: the texts of the tokens.
        page: the HTML file in which a browser shows them.
    """
    lacking = missing(texts)
    if not lacking:
        return ""
    named = ", ".join(f"{c} is {ord(c):04X}" for c in lacking[:3])
    what = "1 character is" if len(lacking) == 1 else f"{len(lacking)} characters are"
    return (
        f" {what} in no font of this machine and stand{'s' * (len(lacking) == 1)} as code points in frames ({named}"
        f"{', …' * (len(lacking) > 3)}); {page} shows them."
    )


def code_point(character: str) -> str:
    """The code point of a character, four or six hexadecimal digits in two lines.

    >>> code_point("中"), code_point("🎉")
    ('4E\\n2D', '01F\\n389')
    """
    digits = f"{ord(character):04X}" if ord(character) < 0x10000 else f"{ord(character):06X}"
    return f"{digits[: len(digits) // 2]}\n{digits[len(digits) // 2 :]}"


def missing(texts: Iterable[str]) -> list[str]:
    """The characters of texts that no installed font has, most frequent first."""
    counts: dict[str, int] = {}
    for text in texts:
        for character in text:
            counts[character] = counts.get(character, 0) + 1
    lacking = [c for c in counts if c.isprintable() and not c.isspace() and not _selects(c) and font_of(c) is None]
    return sorted(lacking, key=lambda c: -counts[c])


def _selects(character: str) -> bool:
    """Whether the character is a variation selector, which modifies the character before it."""
    return "\ufe00" <= character <= "\ufe0f"


@cache
def _usual() -> tuple[str, ...]:
    return tuple(str(font_manager.findfont(name)) for name in USUAL)


@cache
def _other(code: int) -> str | None:
    return next((path for path in _installed() if code in _characters(path)), None)


@cache
def _installed() -> tuple[str, ...]:
    """Installed outline fonts, likely ones first, without placeholder and formula fonts."""
    entries = {
        str(entry.fname): entry.name.lower()
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.size == "scalable" and not entry.name.lower().startswith(UNFIT)
    }
    likely = {path: any(part in name for part in LIKELY) for path, name in entries.items()}
    return tuple(sorted(entries, key=lambda path: (not likely[path], path))[:MOST])


@cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font draws; none if it cannot be read or holds only bitmaps of one size."""
    try:
        font = font_manager.get_font(path)
        found = frozenset(font.get_charmap()) if font.scalable else frozenset[int]()
    except (OSError, RuntimeError):
        return frozenset()
    return found
