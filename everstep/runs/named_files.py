"""What sections with files named `train`, `valid` and `test` have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from everstep.data.text.decoding import reads_text


def file_problems(section: Any) -> Iterator[tuple[str, str]]:
    """The keys `train` without a path, and `encoding` with one that Python lacks, as far as there are such keys."""
    train = getattr(section, "train", "any")
    if not train or (isinstance(train, tuple) and not all(train)):
        yield "train", "expected a path; got none"
    if not reads_text(section.encoding):
        yield "encoding", f"expected an encoding that Python knows, such as utf-8; got {section.encoding!r}"


def split_names(section: Any) -> tuple[str, ...]:
    """The splits, among train, valid and test."""
    there = {"train": True, "valid": section.validated, "test": section.test is not None}
    return tuple(name for name, is_there in there.items() if is_there)
