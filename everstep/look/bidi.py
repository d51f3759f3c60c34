"""Right-to-left writing: the visual order of the characters of a line, and joined forms of Arabic letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

MIRRORED = dict(zip("()[]{}<>«»‹›", ")(][}{><»«›‹", strict=True))
_STRONG = {"L": "L", "R": "R", "AL": "R", "EN": "N", "AN": "N"}


def seen(line: Sequence[str]) -> list[tuple[int, str]]:
    """The characters of a line in visual order, from left to right: the index of each, and the glyph to draw.

    The Unicode bidirectional algorithm (UAX 9) without embedding marks. The first letter sets the direction of the
    line; words of the other direction run the other way within it. Numbers run from left to right, and brackets follow
    their content. Other neutral characters (spaces, stops) follow their neighbours if these agree, else the line. In
    right-to-left text, brackets are mirrored and Arabic letters take their joined forms.

    >>> seen("abc")
    [(0, 'a'), (1, 'b'), (2, 'c')]
    >>> [place for place, _ in seen("\u05d0\u05d1 12")]
    [3, 4, 2, 1, 0]

    Args:
        line: the characters, each with its combining marks.
    """
    kinds = [_STRONG.get(unicodedata.bidirectional(character[:1]), "") for character in line]
    if "R" not in kinds:
        return list(enumerate(line))
    levels = _levels(line, kinds)
    order = list(range(len(line)))
    for level in range(max(levels), 0, -1):  # reverse each run of this level or a deeper one
        start = 0
        while start < len(order):
            stop = start
            while stop < len(order) and levels[order[stop]] >= level:
                stop += 1
            order[start:stop] = order[start:stop][::-1]
            start = stop + 1
    shown = joined(line)
    turned = [MIRRORED.get(c, c) if level == 1 else c for c, level in zip(shown, levels, strict=True)]
    return [(place, turned[place]) for place in order]


def _levels(line: Sequence[str], kinds: Sequence[str]) -> list[int]:
    """The embedding level of each character: 1 for right-to-left text; 0, or 2 in such a line, for left-to-right."""
    base = last = next(kind for kind in kinds if kind in ("L", "R"))
    strong: list[str] = []
    for kind in kinds:
        last = kind if kind in ("L", "R") else last
        strong.append("L" if kind == "N" and last == "L" else kind)  # a number follows the letters before it
    _brackets(line, strong, base)
    found = list(strong)
    start = 0
    while start < len(strong):
        stop = start
        while stop < len(strong) and not strong[stop]:
            stop += 1
        sides = [strong[k] if 0 <= k < len(strong) else base for k in (start - 1, stop)]
        before, after = ("R" if side == "N" else side for side in sides)
        separator = sides == ["N", "N"] and stop == start + 1  # 3,5
        found[start:stop] = ["N" if separator else before if before == after else base] * (stop - start)
        start = stop + 1
    return [{"L": 2 if base == "R" else 0, "R": 1, "N": 2}[kind] for kind in found]


def _brackets(line: Sequence[str], strong: list[str], base: str) -> None:
    """Set the direction of bracket pairs: that of the line if the content has it, else by content and context."""
    open_ones: list[int] = []
    for place, character in enumerate(line):
        if strong[place] or character not in MIRRORED:
            continue
        if character in "([{<«‹":
            open_ones.append(place)
            continue
        start = next((k for k in reversed(open_ones) if line[k] == MIRRORED[character]), None)
        if start is None:
            continue
        del open_ones[open_ones.index(start) :]
        inside = {"R" if kind == "N" else kind for kind in strong[start + 1 : place] if kind}
        before = next(("R" if kind == "N" else kind for kind in reversed(strong[:start]) if kind), base)
        if inside:
            strong[start] = strong[place] = base if base in inside else before


@cache
def _forms() -> dict[tuple[str, str], str]:
    """Map an Arabic letter and its position in a word to the character of its form."""
    found = {}
    for code in (*range(0xFB50, 0xFBB2), *range(0xFE80, 0xFEF5)):
        place, _, letter = unicodedata.decomposition(chr(code)).partition(" ")
        if place in ("<final>", "<initial>", "<medial>") and len(letter) == 4:
            found[chr(int(letter, 16)), place[1:-1]] = chr(code)
    return found


def joined(line: Sequence[str]) -> list[str]:
    """The characters of a line in reading order, with Arabic letters in their contextual forms.

    >>> [unicodedata.name(letter) for letter in joined("\u0628\u0628")]
    ['ARABIC LETTER BEH INITIAL FORM', 'ARABIC LETTER BEH FINAL FORM']
    """
    forms, shown = _forms(), list(line)
    for place, character in enumerate(line):
        letter = character[:1]
        before, after = (line[k][:1] if 0 <= k < len(line) else "" for k in (place - 1, place + 1))
        is_joined = (before, "initial") in forms and (letter, "final") in forms
        joins = (letter, "initial") in forms and (after, "final") in forms
        form = {(True, True): "medial", (True, False): "final", (False, True): "initial"}.get((is_joined, joins))
        if form is not None:
            shown[place] = forms[letter, form] + character[1:]
    return shown
