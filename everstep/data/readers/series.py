"""Read tables of series into a `Panel`: long (a value per row), wide (a series per column) or a series per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everstep.data.panel import Floats, Ints, Panel, as_panel, gaps
from everstep.data.readers.tables import holds_numbers, needed, numbers, read_table, texts
from everstep.data.readers.time_stamps import Frequency, Stamps, are_integers, inferred, named_frequency, read_stamp
from everstep.errors import DataError

if TYPE_CHECKING:
    import polars

Layout = Literal["long", "wide", "rows"]
TIMES = ("ds", "date", "datetime", "timestamp", "time", "month", "day", "week", "quarter", "year")
IDS = ("unique_id", "item_id", "series_id", "series", "id")
VALUES = ("y", "value", "target")


@dataclass(frozen=True)
class Roles:
    """The roles of the columns of a table.

    Attributes:
        layout: long: one value per row; wide: one time per row, one series per column; rows: one series per row.
        id, time: the columns of series names and of time stamps; None: the table has no such column.
        targets: the columns of values; None: in wide tables all columns without another role.
        past, future: the columns of covariates known up to the present and known ahead of time.
        time_format: the `strptime` format of the time stamps; None: ISO 8601 or integers.
        frequency: the name of the frequency; None: inferred from the time stamps.
    """

    layout: Layout
    id: str | None
    time: str | None
    targets: tuple[str, ...] | None
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    time_format: str | None = None
    frequency: str | None = None


@dataclass
class Read:
    """A panel, the roles of its columns, and notes on suspicious input."""

    panel: Panel
    roles: Roles
    notes: list[str] = field(default_factory=list)


def roles_of(
    table: polars.DataFrame,
    where: str,
    *,
    layout: Literal["auto", "long", "wide", "rows"] = "auto",
    id: str | None = None,
    time: str | None = None,
    targets: Sequence[str] = (),
    past: Sequence[str] = (),
    future: Sequence[str] = (),
    time_format: str | None = None,
    frequency: str | None = None,
) -> Roles:
    """Assign a role to each column, from the given names or else the usual names (`IDS`, `TIMES`, `VALUES`).

    Raises:
        DataError: a given column is missing, or the column of values or of series names cannot be determined.
    """
    for key, names in (
        ("data.id", [id] if id else []), ("data.time", [time] if time else []), ("data.target", targets),
        ("data.past", past), ("data.future", future),
    ):  # fmt: skip
        needed(table, names, where, key)
    time = time or _usual(table, TIMES)
    id = id or _usual(table, IDS)
    known = {*past, *future}
    values = list(targets) or [name for name in [_usual(table, VALUES)] if name]
    others = [name for name in table.columns if name not in {id, time, *known}]
    if layout == "auto":
        by_row = time is None and not targets and len(others) > 2 and not holds_numbers(table, others[0])
        layout = "rows" if by_row or (id and not time and not values and len(others) > 2) else "long" if id else "wide"
    if layout == "rows":
        name = id or table.columns[0]
        return Roles("rows", name, None, tuple(column for column in table.columns if column != name))
    if layout == "long":
        if id is None:
            raise DataError(f"{where}: expected a column that names the series of each row (data.id); there is none")
        if not values:
            values = [name for name in others if holds_numbers(table, name)]
        if len(values) != 1:
            shown = ", ".join(map(repr, values or table.columns))
            raise DataError(f"{where}: expected one column of values (data.target), such as y; it has {shown}")
        return Roles("long", id, time, (values[0],), tuple(past), tuple(future), time_format, frequency)
    return Roles("wide", None, time, tuple(targets) or None, tuple(past), tuple(future), time_format, frequency)


def _usual(table: polars.DataFrame, names: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in reversed(table.columns)}
    return next((lower[name] for name in names if name in lower), None)


def read_series(paths: Sequence[Path], roles: Roles | None = None, most: int | None = None, **named: Any) -> Read:
    """Read the series of one or more files into one panel.

    Args:
        paths: files with the same columns.
        roles: the roles of the columns; None: `roles_of` with the arguments `named`.
        most: the number of rows to read of each series, from its first; None: all.

    Raises:
        DataError: a file cannot be read or used; the message names the file and the row.
    """
    where = str(paths[0])
    tables = [read_table(path) for path in paths]
    roles = roles or roles_of(tables[0], where, **named)
    for table, path in zip(tables[1:], paths[1:], strict=True):
        needed(table, tables[0].columns, str(path), "a column of the first file")
    return panel_of(tables, roles, where, most)


def panel_of(tables: Sequence[polars.DataFrame], roles: Roles, where: str, most: int | None = None) -> Read:
    """The series of one or more tables as one panel; `where` names the tables in error messages.

    Raises:
        DataError: see `read_series`.
    """
    parts = [_rows(table, roles, where) for table in tables]
    ids = list(dict.fromkeys(name for names, *_ in parts for name in names))
    number = {name: place for place, name in enumerate(ids)}
    series = np.concatenate([np.array([number[name] for name in names], np.int64)[own] for names, own, *_ in parts])
    target, past, future = (np.concatenate([part[place] for part in parts]) for place in (3, 4, 5))
    if roles.time is None:
        return _counted(ids, series, (target, past, future), roles, most)
    stamps = Stamps(
        np.concatenate([part[2].values for part in parts]), parts[0][2].timed, any(part[2].utc for part in parts)
    )
    notes = []
    order = np.lexsort((stamps.values, series))
    if (moved := np.flatnonzero(order != np.arange(len(order)))).size:
        where_moved = np.unique(series[order[moved]])
        grouped = np.argsort(series, kind="stable")  # mere lack of grouping needs no note
        unsorted = int((np.diff(stamps.values[grouped])[np.diff(series[grouped]) == 0] < 0).sum())
        if unsorted:
            notes.append(f"rows out of order in {len(where_moved):,} series, which were sorted by time")
    series, values = series[order], stamps.values[order]
    inside = np.diff(series) == 0
    if (twice := np.flatnonzero(inside & (np.diff(values) == 0))).size:
        shown = Frequency("microsecond" if stamps.timed else "step", 1, utc=stamps.utc).texts(values[twice[:1]])[0]
        raise DataError(
            f"{where}: series {ids[series[twice[0]]]!r} has more than one row at {shown} ({len(twice):,} such rows); "
            "remove or average them. The hour that daylight-saving time repeats needs stamps with an offset from UTC"
        )
    frequency = inferred(stamps._replace(values=values), inside, roles.frequency, where)
    places = frequency.places(values)
    if left_out := gaps(series, places, frequency, where):
        notes.append(f"{left_out:,} steps without a row, read as missing values")
    panel = as_panel(ids, series, places, frequency, (target[order], past[order], future[order]))
    return Read(_cut(panel, most), roles, notes)


def _counted(ids: list[str], series: Ints, columns: tuple[Floats, Floats, Floats], roles: Roles, most: Any) -> Read:
    """A panel of rows without time stamps, numbered from 1 within each series."""
    order = np.argsort(series, kind="stable")
    series = series[order]
    starts = np.searchsorted(series, np.arange(len(ids)))
    places = np.arange(len(series)) - starts[series] + 1
    frequency = named_frequency("step")
    target, past, future = (column[order] for column in columns)
    panel = as_panel(ids, series, places, frequency, (target, past, future), counted=True)
    return Read(_cut(panel, most), roles)


def _cut(panel: Panel, most: int | None) -> Panel:
    """The panel with at most the first `most` rows of each series."""
    if most is None or (panel.rows <= most).all():
        return panel
    series = np.repeat(np.arange(len(panel)), panel.rows)
    inside = np.arange(len(series)) - panel.starts[series]
    kept = inside < most
    columns = (panel.target[kept], panel.past[kept], panel.future[kept])
    places = panel.first[series[kept]] + inside[kept]
    return as_panel(panel.ids, series[kept], places, panel.frequency, columns, panel.counted)


def _rows(table: polars.DataFrame, roles: Roles, where: str) -> tuple[list[str], Ints, Stamps, Floats, Floats, Floats]:
    """The series names; and for each row its series number, time stamp, value, past and future covariates."""
    if roles.layout == "rows":
        return _from_rows(table, roles, where)
    needed(table, [*roles.past, *roles.future], where, "as in training")
    past, future = (
        np.stack([numbers(table, name, where) for name in names], 1) if names else np.zeros((table.height, 0))
        for names in (roles.past, roles.future)
    )
    stamps = _stamps(table, roles, where)
    if roles.layout == "long":
        assert roles.id is not None
        assert roles.targets is not None
        needed(table, [roles.id, roles.targets[0]], where, "as in training")
        each = texts(table, roles.id, where)
        names = list(dict.fromkeys(each))
        number = {name: place for place, name in enumerate(names)}
        own = np.fromiter((number[name] for name in each), np.int64, len(each))
        return names, own, stamps, numbers(table, roles.targets[0], where), past, future
    others = {roles.time, *roles.past, *roles.future}
    columns = list(roles.targets) if roles.targets is not None else [c for c in table.columns if c not in others]
    needed(table, columns, where, "data.target")
    if roles.targets is None and (text := next((c for c in columns if not holds_numbers(table, c)), None)):
        raise DataError(
            f"{where}: expected numbers in all columns except the time column; column {text!r} holds text, such as "
            f"{str(table[text][0])[:40]!r}. Name the columns that are series (data.target), or the column of series "
            "names (data.id)"
        )
    if not columns:
        raise DataError(f"{where}: expected a column of numbers besides the time column; there is none")
    target = np.concatenate([numbers(table, name, where) for name in columns])
    own = np.repeat(np.arange(len(columns)), table.height)
    many = len(columns)
    return (
        columns, own, replace_values(stamps, np.tile(stamps.values, many)), target, np.tile(past, (many, 1)),
        np.tile(future, (many, 1)),
    )  # fmt: skip


def replace_values(stamps: Stamps, values: Ints) -> Stamps:
    """Time stamps of the same kind with other values (N,)."""
    return stamps._replace(values=values)


def _from_rows(
    table: polars.DataFrame, roles: Roles, where: str
) -> tuple[list[str], Ints, Stamps, Floats, Floats, Floats]:
    assert roles.id is not None
    needed(table, [roles.id], where, "as in training")
    names = texts(table, roles.id, where)
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"{where}: expected one row a series; {twice!r} has more")
    columns = [column for column in table.columns if column != roles.id]
    values = np.stack([numbers(table, name, where) for name in columns], 1)
    lengths = values.shape[1] - np.argmax(~np.isnan(values[:, ::-1]), 1)
    filled = ~np.isnan(values).all(axis=1, keepdims=True)
    kept = (np.arange(values.shape[1]) < lengths[:, None]) & filled
    own, _ = np.nonzero(kept)
    none = np.zeros((len(own), 0))
    return names, own, Stamps(np.zeros(0, np.int64), False), values[kept], none, none


def _stamps(table: polars.DataFrame, roles: Roles, where: str) -> Stamps:
    import polars as pl

    if roles.time is None:
        return Stamps(np.zeros(0, np.int64), False)
    needed(table, [roles.time], where, "data.time")
    column = table[roles.time]
    if len(gaps_at := column.is_null().arg_true()):
        raise DataError(
            f"{where}, row {gaps_at[0] + 1} of its data: expected an entry in column {roles.time!r}; it is empty"
        )
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        zoned = getattr(column.dtype, "time_zone", None) is not None
        return Stamps(column.cast(pl.Datetime("us")).to_physical().to_numpy().astype(np.int64), True, zoned)
    if column.dtype.is_temporal():
        raise DataError(f"{where}: expected dates, or dates with times, in column {roles.time!r}; got {column.dtype}")
    each = texts(table, roles.time, where)
    once = list(dict.fromkeys(each))
    if roles.time_format is None and are_integers(once):
        return Stamps(np.array([int(text) for text in each], np.int64), False)
    read: dict[str, tuple[int, bool]] = {}
    for text in once:
        try:
            read[text] = read_stamp(text, roles.time_format)
        except (ValueError, OverflowError):
            expected = roles.time_format or "such as 2024-01-31, 2024-01-31 13:00 or 2024-01, or whole numbers"
            hint = "" if roles.time_format else "; write how it is to be read into data.time_format, such as %d/%m/%Y"
            raise DataError(
                f"{where}, row {each.index(text) + 1} of its data: expected a time in column {roles.time!r} "
                f"({expected}); got {text[:40]!r}{hint}"
            ) from None
    offsets = {offset for _, offset in read.values()}
    if len(offsets) > 1:
        raise DataError(f"{where}: some time stamps in {roles.time!r} have an offset from UTC and some have none")
    return Stamps(np.fromiter((read[text][0] for text in each), np.int64, len(each)), True, True in offsets)


def as_roles(raw: dict[str, Any]) -> Roles:
    """Roles from their JSON object."""
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    return Roles(**lists)
