"""Writing from right to left: the order in which the characters of a line are seen, and Arabic letters joined."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

MIRRORED = dict(zip("()[]{}<>«»‹›", ")(][}{><»«›‹", strict=True))
_STRONG = {"L": "L", "R": "R", "AL": "R", "EN": "N", "AN": "N"}


def seen(line: Sequence[str]) -> list[tuple[int, str]]:
    """The characters of a line from left to right as a reader sees them: the place of each, and what is drawn for it.

    The Unicode bidirectional algorithm (UAX 9) without marks of embedding: a line runs as its first letter does, words
    of the other direction run the other way within it, numbers always from left to right, brackets with what they hold,
    and what else has no direction (spaces, stops) with its neighbours if they agree, else with the line. Brackets are
    turned round where text runs from right to left, and Arabic letters have the form that joins them.

    >>> seen("abc")
    [(0, 'a'), (1, 'b'), (2, 'c')]
    >>> [place for place, _ in seen("\u05d0\u05d1 12")]
    [3, 4, 2, 1, 0]

    Args:
        line: each character (with the marks on it).
    """
    kinds = [_STRONG.get(unicodedata.bidirectional(character[:1]), "") for character in line]
    if "R" not in kinds:
        return list(enumerate(line))
    levels = _levels(line, kinds)
    order = list(range(len(line)))
    for level in range(max(levels), 0, -1):  # each run of that level or a deeper one is turned round
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
    """1 where text runs from right to left, 0 or, within such a line, 2 where it does not."""
    base = last = next(kind for kind in kinds if kind in ("L", "R"))
    strong: list[str] = []
    for kind in kinds:
        last = kind if kind in ("L", "R") else last
        strong.append("L" if kind == "N" and last == "L" else kind)  # a number after letters goes with them
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
    """Pairs of brackets run as the line does if what they hold does in part, else as what stands within and before."""
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
    """From an Arabic letter and its place in a word to the character that is drawn there."""
    found = {}
    for code in (*range(0xFB50, 0xFBB2), *range(0xFE80, 0xFEF5)):
        place, _, letter = unicodedata.decomposition(chr(code)).partition(" ")
        if place in ("<final>", "<initial>", "<medial>") and len(letter) == 4:
            found[chr(int(letter, 16)), place[1:-1]] = chr(code)
    return found


def joined(line: Sequence[str]) -> list[str]:
    """Arabic letters in the forms that they take beside their neighbours, in the order of reading; others as they are.

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
