"""Sequences of numbers in a long table: a step a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.series import IDS, TIMES
from everstep.data.readers.tables import coded, holds_numbers, needed, numbers
from everstep.data.readers.time_stamps import read_stamp
from everstep.errors import DataError

if TYPE_CHECKING:
    import polars

STEPS = ("step", "t", *TIMES)
"""The usual names of the column that orders the rows of a sequence."""


def found_in_table(
    table: polars.DataFrame,
    where: str,
    values: tuple[str, ...] | None,
    label: str | None,
    id: str | None,
    step: str | None,
) -> tuple[list[tuple[str, NDArray[Any], str, int]], tuple[str, ...], tuple[str, ...]]:
    """The sequences of a long table, in the order in which they begin.

    Args:
        table: a step a row.
        where: its source, for messages.
        values: the columns of numbers; None: all that hold numbers and have no other role.
        label: the column of the classes, the same in all rows of a sequence; None: there are none.
        id: the column that names the sequence; None: the first of `IDS` that there is.
        step: the column that orders the rows, of numbers or times; None: the first of `STEPS` that there is, else the
            order of the rows.

    Returns:
        (name, steps (T, D), class, first line) of each; the names of the columns; notes.

    Raises:
        DataError: a column is missing or holds text, a sequence has two classes or two rows of one step, a step is no
            number and no time.
    """
    lower = {column.lower(): column for column in reversed(table.columns)}
    id = id or next((lower[name] for name in IDS if name in lower), None)
    others = {id, label, *(values or ())}
    step = step or next((lower[name] for name in STEPS if name in lower and lower[name] not in others), None)
    if id is None:
        raise DataError(
            f"{where}: expected a column that names the sequence of each row (data.id), such as {IDS[0]}; its columns "
            f"are {', '.join(map(repr, table.columns[:12]))}; of a table with a sequence a row say data.format=rows"
        )
    free = [name for name in table.columns if name not in {id, step, label} and name.strip()]  # "" numbers the rows
    taken = values or tuple(name for name in free if holds_numbers(table, name))
    needed(table, [id, *([label] if label else []), *([step] if step else [])], where, "data.id, data.label, data.step")
    needed(table, taken, where, "data.values")
    if not taken:
        raise DataError(f"{where}: expected a column of numbers (data.values); got {', '.join(table.columns)}")
    names = _texts(table, id, where)
    first: dict[str, int] = {}
    own = np.array([first.setdefault(name, len(first)) for name in names])
    order, notes = _ordered(table, where, own, step)
    found = np.stack([numbers(table, name, where) for name in taken], 1)[order]
    bounds = np.append(np.flatnonzero(np.diff(own[order], prepend=-1)), len(order))
    labels = _labels(table, label, where, own, list(first)) if label else [""] * len(first)
    lines = np.full(len(first), len(own))
    np.minimum.at(lines, own, np.arange(len(own)) + 2)
    rows = [
        (name, found[bounds[place] : bounds[place + 1]], labels[place], int(lines[place]))
        for place, name in enumerate(first)
    ]
    return rows, taken, notes


def _ordered(
    table: polars.DataFrame, where: str, own: NDArray[Any], step: str | None
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The rows by sequence and step."""
    if step is None:
        return np.argsort(own, kind="stable"), ()
    places = _places(table, step, where)
    order = np.lexsort((places, own))
    same = own[order][1:] == own[order][:-1]
    twice = np.flatnonzero(same & (places[order][1:] == places[order][:-1]))
    if len(twice):
        row = int(order[twice[0] + 1])
        raise DataError(
            f"{where}, row {row + 1} of its data: expected each step of a sequence once; {step!r} has "
            f"{table[step][row]} twice in one"
        )
    if same.any():
        apart = np.diff(places[order])[same]
        if np.ptp(apart) > 1e-6 * np.abs(apart).max():
            told = "steps lie at unequal distances, which the network does not read"
            return order, (f"{where}: {told}; give the distance as a further column if it matters",)
    return order, ()


def _places(table: polars.DataFrame, step: str, where: str) -> NDArray[Any]:
    """The place of each row in time: a number, or microseconds."""
    column = table[step]
    if holds_numbers(table, step):
        found: NDArray[Any] = numbers(table, step, where)
        none = np.flatnonzero(np.isnan(found))
    else:
        none = column.is_null().arg_true().to_numpy()
    if len(none):
        raise DataError(f"{where}, row {none[0] + 1} of its data: expected a step in column {step!r}; it is empty")
    if column.dtype.is_temporal():
        return column.to_physical().to_numpy().astype(np.int64)
    if holds_numbers(table, step):
        return found
    once, own = coded(table, step, where)
    stamps = []
    for text in once:
        try:
            stamps.append(read_stamp(text)[0])
        except (ValueError, OverflowError):
            raise DataError(
                f"{where}: expected numbers in column {step!r}, or times such as 2024-01-31 13:00, by which rows are "
                f"ordered (data.step); got {text[:40]!r}"
            ) from None
    return np.array(stamps, np.int64)[own]


def _labels(table: polars.DataFrame, label: str, where: str, own: NDArray[Any], names: list[str]) -> list[str]:
    """The class of each sequence."""
    found: list[str | None] = [None] * len(names)
    for row, (place, name) in enumerate(zip(own.tolist(), _texts(table, label, where), strict=True), 1):
        if found[place] not in (None, name):
            raise DataError(
                f"{where}, row {row} of its data: expected one class for all rows of a sequence ({label!r}); "
                f"{names[place]!r} has {found[place]!r} and {name!r}"
            )
        found[place] = name
    return [name or "" for name in found]


def _texts(table: polars.DataFrame, name: str, where: str) -> list[str]:
    """The stripped texts of a column; raises as `coded`."""
    names, own = coded(table, name, where)
    return [names[k] for k in own.tolist()]
