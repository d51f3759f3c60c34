"""Files that word vectors are measured on: pairs of words with a similarity, and analogies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from everstep.data.text.text_files import expand, file_lines
from everstep.errors import DataError
from everstep.sections import Files


class SimilarWords(NamedTuple):
    """A file of pairs of words, each with the similarity that people gave it."""

    name: str
    pairs: list[tuple[str, str]]
    scores: list[float]


class Analogies(NamedTuple):
    """A section of questions (a, b, c, d): d is to c as b is to a."""

    name: str
    questions: list[tuple[str, str, str, str]]


def read_similarities(paths: Files) -> list[SimilarWords]:
    """Read files of a word, a word and a number a line, separated by tabs or spaces.

    Raises:
        DataError: a file is missing, or a line is another; the message names it.
    """
    found = []
    for path in expand(paths):
        pairs, scores = list[tuple[str, str]](), list[float]()
        for number, line in _lines(path):
            fields = line.split()
            try:
                one, other, score = fields[0], fields[1], float(fields[2])
                if len(fields) > 3 or not math.isfinite(score):
                    raise ValueError
            except (ValueError, IndexError):
                raise DataError(
                    f"{path}, line {number}: expected a word, a word and a number; got {line.strip()[:60]!r}"
                ) from None
            pairs.append((one, other))
            scores.append(score)
        found.append(SimilarWords(path.name, pairs, scores))
    return found


def read_analogies(paths: Files) -> list[Analogies]:
    """Read files of four words a line, in sections that begin with `: NAME`.

    Raises:
        DataError: a file is missing, or a line is another; the message names it.
    """
    found: list[Analogies] = []
    for path in expand(paths):
        current: list[tuple[str, str, str, str]] | None = None
        for number, line in _lines(path):
            fields = line.split()
            if fields[0] == ":" or (fields[0].startswith(":") and len(fields) == 1):
                current = []
                found.append(Analogies(" ".join(fields).lstrip(": ") or path.stem, current))
                continue
            if len(fields) != 4:
                raise DataError(f"{path}, line {number}: expected four words; got {line.strip()[:60]!r}")
            if current is None:
                current = []
                found.append(Analogies(path.stem, current))
            a, b, c, d = fields
            current.append((a, b, c, d))
    return [section for section in found if section.questions]


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    return [(number, line) for number, line in enumerate(file_lines(path), 1) if line.strip()]
