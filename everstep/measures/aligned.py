"""Alignment of the words of two tokenisations of one text, as in the CoNLL 2018 shared task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """A token of a text and its words: the token itself, or several (`can't`: ca, n't)."""

    surface: str
    words: tuple[str, ...]


class _Placed(NamedTuple):
    word: str
    start: int
    stop: int
    several: bool


def aligned_words(gold: Sequence[Part], system: Sequence[Part]) -> list[tuple[int, int]]:
    """Align two tokenisations of the same characters: pairs of word indices (gold, system).

    Two single-word tokens are aligned if they cover the same characters of the text, ignoring spaces. In a region with
    a multiword token on either side, the words of both sides are aligned by a longest common subsequence of their
    lower-cased forms (Zeman 2018, "CoNLL 2018 shared task").

    Raises:
        ValueError: the characters differ.

    Example:
        >>> gold = [Part("can't", ("ca", "n't")), Part("go", ("go",))]
        >>> aligned_words(gold, [Part("can", ("can",)), Part("'t", ("n't",)), Part("go", ("go",))])
        [(1, 1), (2, 2)]
    """
    texts = ["".join("".join(part.surface.split()) for part in parts) for parts in (gold, system)]
    if texts[0] != texts[1]:
        place = next(
            (at for at, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts))
        )
        here = [text[max(place - 10, 0) : place + 10] for text in texts]
        raise ValueError(f"aligned_words: expected the same characters; they differ at {here[0]!r} and {here[1]!r}")
    ours, theirs = _placed(gold), _placed(system)
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(ours) and j < len(theirs):
        one, other = ours[i], theirs[j]
        if one.several or other.several:
            i += not one.several and one.start < other.start
            j += not other.several and other.start < one.start
            stop_i, stop_j = _region(ours, theirs, i, j, one.stop if one.several else other.stop)
            found += _common(ours, theirs, range(i, stop_i), range(j, stop_j))
            i, j = stop_i, stop_j
        elif (one.start, one.stop) == (other.start, other.stop):
            found.append((i, j))
            i, j = i + 1, j + 1
        elif one.start <= other.start:
            i += 1
        else:
            j += 1
    return found


def aligned_accuracy(
    gold: Sequence[Part], tags: Sequence[str], system: Sequence[Part], predicted: Sequence[str]
) -> float:
    """F1 of tagged words, 2 · correct / (gold words + system words); a word is correct if its aligned word has its tag.

    With the same words on both sides this is the accuracy.

    Raises:
        ValueError: the characters differ, or the numbers of tags and words differ.

    Example:
        >>> words = [Part("to", ("to",)), Part("go", ("go",))]
        >>> aligned_accuracy(words, ["PART", "VERB"], words, ["ADP", "VERB"])
        0.5
    """
    counts = [sum(len(part.words) for part in parts) for parts in (gold, system)]
    if counts != [len(tags), len(predicted)]:
        raise ValueError(f"expected as many tags as words, {counts}, got {len(tags)} and {len(predicted)}")
    right = sum(tags[i] == predicted[j] for i, j in aligned_words(gold, system))
    return 2 * right / sum(counts) if sum(counts) else 0.0


def _placed(parts: Sequence[Part]) -> list[_Placed]:
    """Each word with the character range of its token."""
    found, start = [], 0
    for part in parts:
        stop = start + len("".join(part.surface.split()))
        found += [_Placed(word.lower(), start, stop, len(part.words) > 1) for word in part.words]
        start = stop
    return found


def _region(ours: list[_Placed], theirs: list[_Placed], i: int, j: int, stop: int) -> tuple[int, int]:
    """The ends (i, j) of a region that multiword tokens cover on either side.

    The first such token ends at character `stop`; the region grows until no token crosses its end.
    """
    while True:
        inside = [i < len(ours) and _within(ours[i], stop), j < len(theirs) and _within(theirs[j], stop)]
        if not any(inside):
            return i, j
        first = i < len(ours) and (j == len(theirs) or ours[i].start <= theirs[j].start)
        word = ours[i] if first else theirs[j]
        stop = max(stop, word.stop) if word.several else stop
        i, j = (i + 1, j) if first else (i, j + 1)


def _within(word: _Placed, stop: int) -> bool:
    return word.start < stop if word.several else word.stop <= stop


def _common(ours: list[_Placed], theirs: list[_Placed], some: range, others: range) -> list[tuple[int, int]]:
    """The pairs of a longest common subsequence."""
    longest = [[0] * (len(others) + 1) for _ in range(len(some) + 1)]
    for a in reversed(range(len(some))):
        for b in reversed(range(len(others))):
            same = ours[some[a]].word == theirs[others[b]].word
            longest[a][b] = max(longest[a + 1][b + 1] + same, longest[a + 1][b], longest[a][b + 1])
    pairs, a, b = [], 0, 0
    while a < len(some) and b < len(others):
        if ours[some[a]].word == theirs[others[b]].word:
            pairs.append((some[a], others[b]))
            a, b = a + 1, b + 1
        elif longest[a][b] == longest[a + 1][b]:
            a += 1
        else:
            b += 1
    return pairs
