"""Numbers in lines of text: a row of numbers, a list in JSON, a line of the UCR/UEA archive."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.tables import MISSING
from everstep.errors import DataError
from everstep.storage.reading import parse_json

Floats = NDArray[np.float64]
_MISSING = frozenset(MISSING)


def fields_of(line: str) -> list[str]:
    """The fields of a row, separated by commas, tabs or semicolons, else by spaces; stripped.

    Example:
        >>> fields_of(" 1, 2,,4"), fields_of("1   2.5")
        (['1', '2', '', '4'], ['1', '2.5'])
    """
    mark = next((mark for mark in (",", "\t", ";") if mark in line), None)
    return line.split() if mark is None else [field.strip() for field in line.split(mark)]


def number(text: str, where: str) -> float:
    """A number, or NaN if it is missing (`MISSING`).

    Raises:
        DataError: it is text or infinite.
    """
    if text in _MISSING:
        return math.nan
    try:
        found = float(text)
    except ValueError:
        raise DataError(f"{where}: expected a number, or ? where it is missing; got {text[:40]!r}") from None
    if math.isinf(found):
        raise DataError(f"{where}: expected finite numbers; got {text[:40]!r}; write ? where it is missing")
    return found


def steps_of(values: NDArray[Any], step_size: int, where: str) -> NDArray[Any]:
    """Numbers in order, cut into steps of `step_size` numbers, (T, step_size).

    Raises:
        DataError: the last step is not whole.
    """
    if values.size % step_size:
        raise DataError(
            f"{where}: expected {step_size} numbers a step (data.step_size); got {values.size:,} numbers, which are "
            f"no whole steps"
        )
    return values.reshape(-1, step_size)


def archive_line(line: str, dimensions: int | None, labelled: bool, where: str) -> tuple[Floats, str]:
    """A line of a `.ts` file: the dimensions, each a list of numbers, separated by colons, then the class.

    Args:
        line: the line.
        dimensions: how many there must be; None: as there are.
        labelled: whether the class is the last field.
        where: the source, for messages.

    Returns:
        The steps (T, dimensions), with NaN where a number is missing or a dimension is shorter, and the class or "".

    Raises:
        DataError: a field is no number, or there are other dimensions.

    Example:
        >>> archive_line("1,2:3,?:up", 2, True, "a.ts, line 9")[0].tolist()
        [[1.0, 3.0], [2.0, nan]]
    """
    *parts, last = line.split(":")
    label = last.strip() if labelled else ""
    parts = parts if labelled else [*parts, last]
    if any("(" in part for part in parts):
        raise DataError(f"{where}: expected series without time stamps; got {line[:40]!r}; take them out of the file")
    if not parts or (dimensions is not None and len(parts) != dimensions):
        told = f"expected {dimensions or 'one or more'} dimensions, separated by colons"
        raise DataError(f"{where}: {told}{' before the class' if labelled else ''}; got {len(parts)}")
    rows = [[number(field, where) for field in fields_of(part)] if part.strip() else [] for part in parts]
    steps = np.full((max(map(len, rows)), len(rows)), np.nan, np.float64)
    for place, row in enumerate(rows):
        steps[: len(row), place] = row
    return steps, label


def asked_sequence(line: str, shape: tuple[int, ...], where: str) -> Floats:
    """One sequence of a line of input: (T, *shape) with NaN where a number is missing; T = 0 for a blank line.

    The line is a list in JSON (of steps, or of all numbers in order; null where one is missing), or numbers in order,
    or dimensions that are separated by colons.

    Raises:
        DataError: the line holds other things, or other numbers a step.

    Example:
        >>> asked_sequence("[[1, 2], [3, null]]", (2,), "line 1").tolist()
        [[1.0, 2.0], [3.0, nan]]
        >>> asked_sequence("1,2,3,4", (2,), "line 1").tolist() == asked_sequence("1,3:2,4", (2,), "line 1").tolist()
        True
    """
    size = math.prod(shape)
    text = line.strip()
    if text.startswith("["):
        found = _of_json(text, where)
        plain = shape[:-1] if shape[-1] == 1 else shape
        legal = {shape, plain, (size,)} if len(shape) > 1 else {found.shape[1:]}  # a frame on its side is another
        if found.ndim > 1 and (math.prod(found.shape[1:]) != size or found.shape[1:] not in legal):
            raise DataError(f"{where}: expected {_of(shape)} a step, as in training; got {_of(found.shape[1:])}")
    elif ":" in text:
        found, _ = archive_line(text, size, False, where)
    else:
        found = np.array([number(field, where) for field in fields_of(text)] if text else [], np.float64)
    if found.size % size:
        raise DataError(f"{where}: expected {_of(shape)} a step, as in training; got {found.size:,} numbers in all")
    return found.reshape(-1, *shape)


def _of_json(text: str, where: str) -> Floats:
    try:
        found = np.array(parse_json(text), dtype=np.float64)  # None becomes NaN
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where}: expected a list of numbers, or of steps with equally many numbers each, with null where one is "
            f"missing; got {re.sub(chr(10), ' ', text)[:60]!r} ({error})"
        ) from None
    if np.isinf(found).any():
        raise DataError(f"{where}: expected finite numbers; got an infinity")
    return found


def _of(shape: tuple[int, ...]) -> str:
    """`(2,)` → "2 numbers"."""
    return f"{' × '.join(map(str, shape))} number{'' if shape == (1,) else 's'}"
