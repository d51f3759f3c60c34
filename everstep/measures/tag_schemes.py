"""Spans as one tag per word: IOB1, IOB2, IOBES, BILOU (Ramshaw and Marcus 1995; Tjong Kim Sang and Veenstra 1999).

A tag is `O` (outside) or a letter, a hyphen and the type of a span, such as `B-PER`; a letter alone has the type "".

| scheme | span of one word | span of several words |
|---|---|---|
| iob1 | I | I I … I; the first tag is B if a span of the same type ends just before |
| iob2 | B | B I … I |
| iobes | S | B I … E |
| bilou | U | B I … L |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

Scheme = Literal["iob1", "iob2", "iobes", "bilou"]
LETTERS: dict[Scheme, str] = {"iob1": "BI", "iob2": "BI", "iobes": "BIES", "bilou": "BILU"}
OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])(?:-(.*))?", re.DOTALL)
_STARTS, _ENDS, _CLOSE = "BSU", "ELSU", {"iobes": ("S", "E"), "bilou": ("U", "L")}
_WHOLE = {"iob2": re.compile("BI*"), "iobes": re.compile("S|BI*E"), "bilou": re.compile("U|BI*L")}


class Span(NamedTuple):
    """Words `start` … `stop` − 1 of a sentence, of type `type`."""

    start: int
    stop: int
    type: str


def letter_and_type(tag: str) -> tuple[str, str] | None:
    """The letter and the type of a tag; ("O", "") outside of spans; None if it is not a span tag.

    Example:
        >>> letter_and_type("B-PER"), letter_and_type("I"), letter_and_type("NOUN")
        (('B', 'PER'), ('I', ''), None)
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = _TAG.fullmatch(tag)
    return None if found is None else (found[1], found[2] or "")


def recognised(sentences: Iterable[Sequence[str]]) -> Scheme | None:
    """The scheme of the tags of sentences; None if they are not span tags.

    Decided by the letters; if only B and I occur, by whether fewer transitions violate IOB1 or IOB2, with ties to IOB2.

    Example:
        >>> recognised([["I-PER", "I-PER", "B-PER", "O"]]), recognised([["DET", "NOUN"]])
        ('iob1', None)
    """
    kept = [tuple(tags) for tags in sentences]
    different = {tag for tags in kept for tag in tags}
    parts = {tag: letter_and_type(tag) for tag in different}
    found = [part for part in parts.values() if part is not None]
    if len(found) < len(parts) or not {"B", "I", "S", "U"} & {letter for letter, _ in found}:
        return None
    letters = {letter for letter, _ in found} - {OUTSIDE}
    fitting = [scheme for scheme, own in LETTERS.items() if letters <= set(own)]
    if not fitting:
        return None
    order: list[Scheme] = ["iob2", "iob1", "iobes", "bilou"]
    candidates = [scheme for scheme in order if scheme in fitting]
    if candidates[0] == "iob2":
        candidates = candidates[:2]
    return min(candidates, key=lambda scheme: sum(len(broken(tags, scheme)) for tags in kept))


def allowed(before: str | None, after: str | None, scheme: Scheme) -> bool:
    """Whether a tag may follow another in a scheme; None is the boundary of a sentence.

    Example:
        >>> allowed("B-PER", "I-LOC", "iob2"), allowed("B-PER", None, "iobes"), allowed("O", "I-LOC", "iob1")
        (False, False, True)
    """
    outside = (OUTSIDE, "")
    (left, old), (right, new) = (
        outside if tag is None else letter_and_type(tag) or ("?", tag) for tag in (before, after)
    )
    if right not in f"{LETTERS[scheme]}O" or left not in f"{LETTERS[scheme]}O":
        return False
    same = left != OUTSIDE and right != OUTSIDE and old == new
    if scheme == "iob1":
        return right != "B" or same
    if scheme == "iob2":
        return right != "I" or same
    opened, goes_on = left in "BI", right not in "OBSU"
    return opened == goes_on and (same or not opened)


def broken(tags: Sequence[str], scheme: Scheme) -> list[int]:
    """The indices of words whose tag may not follow the one before; len(tags) if the sentence may not end there.

    Example:
        >>> broken(["O", "I-PER", "B-LOC"], "iob2")
        [1]
    """
    around = [None, *tags, None]
    return [place for place in range(len(tags) + 1) if not allowed(around[place], around[place + 1], scheme)]


def spans(tags: Sequence[str], scheme: Scheme, strict: bool = False) -> list[Span]:
    """The spans of a sentence.

    Lenient: a span begins at B, S or U, and at any other tag that cannot continue the span before it because there is
    none, it is closed, or it has another type; conlleval does the same for B and I. Strict: only those of these spans
    that obey the scheme.

    Example:
        >>> spans(["I-PER", "I-PER", "O", "B-LOC"], "iob2")
        [Span(start=0, stop=2, type='PER'), Span(start=3, stop=4, type='LOC')]
        >>> spans(["I-PER", "I-PER", "O", "B-LOC"], "iob2", strict=True)
        [Span(start=3, stop=4, type='LOC')]
    """
    found: list[Span] = []
    letters: list[str] = []  # letters of the last span
    goes_on = False
    for place, tag in enumerate(tags):
        letter, kind = letter_and_type(tag) or (OUTSIDE, "")
        if letter == OUTSIDE:
            goes_on = False
            continue
        if goes_on and letter not in _STARTS and found[-1].type == kind:
            found[-1] = found[-1]._replace(stop=place + 1)
            letters[-1] += letter
        else:
            found.append(Span(place, place + 1, kind))
            letters.append(letter)
        goes_on = letter not in _ENDS
    if not strict:
        return found
    return [
        span
        for number, (span, written) in enumerate(zip(found, letters, strict=True))
        if _is_whole(span, written, found[number - 1] if number else None, scheme)
    ]


def _is_whole(span: Span, letters: str, before: Span | None, scheme: Scheme) -> bool:
    if scheme != "iob1":
        return _WHOLE[scheme].fullmatch(letters) is not None
    touches = before is not None and before.stop == span.start and before.type == span.type
    return letters == ("B" if touches else "I") + "I" * (len(letters) - 1)


def tags_of(found: Sequence[Span], length: int, scheme: Scheme) -> list[str]:
    """The tags of a sentence of `length` words with the spans `found`, which are sorted and do not overlap.

    Example:
        >>> tags_of([Span(0, 2, "PER"), Span(3, 4, "LOC")], 4, "iobes")
        ['B-PER', 'E-PER', 'O', 'S-LOC']
    """
    tags = [OUTSIDE] * length
    alone, last = _CLOSE.get(scheme, ("B", "I"))
    before: Span | None = None
    for span in found:
        letters = alone if span.stop == span.start + 1 else f"B{'I' * (span.stop - span.start - 2)}{last}"
        if scheme == "iob1" and not (before and before.stop == span.start and before.type == span.type):
            letters = "I" + letters[1:]
        ending = f"-{span.type}" if span.type else ""
        tags[span.start : span.stop] = [letter + ending for letter in letters]
        before = span
    return tags


def converted(tags: Sequence[str], before: Scheme, after: Scheme) -> list[str]:
    """The tags converted to another scheme; spans are read leniently."""
    return list(tags) if before == after else tags_of(spans(tags, before), len(tags), after)


def all_tags(tags: Iterable[str], scheme: Scheme) -> list[str]:
    """All tags of the types that occur: `O`, then all letters for each type."""
    types = sorted({cast(tuple[str, str], letter_and_type(tag))[1] for tag in tags if tag != OUTSIDE})
    return [OUTSIDE, *(f"{letter}-{kind}" if kind else letter for kind in types for letter in LETTERS[scheme])]
