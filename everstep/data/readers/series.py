"""Read tables of series into a `Panel`: long (a value per row), wide (a series per column) or a series per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from everstep.data.panel import Floats, Ints, Panel, as_panel, gaps
from everstep.data.readers.static_columns import Categories, StaticColumns
from everstep.data.readers.tables import coded, holds_numbers, needed, numbers, read_table
from everstep.data.readers.time_stamps import Frequency, Stamps, are_integers, inferred, named_frequency, read_stamp
from everstep.errors import DataError

if TYPE_CHECKING:
    import polars

Array = TypeVar("Array", Ints, Floats)
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
        static: the columns of covariates that are the same in all rows of a series; long tables alone have them.
        categories: those of them that are text, with their categories in training.
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
    static: tuple[str, ...] = ()
    categories: Categories = ()


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
    static: Sequence[str] = (),
    time_format: str | None = None,
    frequency: str | None = None,
) -> Roles:
    """Assign a role to each column, from the given names or else the usual names (`IDS`, `TIMES`, `VALUES`).

    Raises:
        DataError: a given column is missing, or the column of values or of series names cannot be determined.
    """
    for key, names in (
        ("data.id", [id] if id else []), ("data.time", [time] if time else []), ("data.target", targets),
        ("data.past", past), ("data.future", future), ("data.static", static),
    ):  # fmt: skip
        needed(table, names, where, key)
    time = time or _usual(table, TIMES)
    id = id or _usual(table, IDS)
    known = {*past, *future, *static}
    values = list(targets) or [name for name in [_usual(table, VALUES)] if name]
    others = [name for name in table.columns if name not in {id, time, *known}]
    if layout == "auto":
        by_row = time is None and not targets and len(others) > 2 and not holds_numbers(table, others[0])
        layout = "rows" if by_row or (id and not time and not values and len(others) > 2) else "long" if id else "wide"
    if frequency == "irregular" and (time is None or layout == "rows"):
        raise DataError(
            f"{where}: expected a column of time stamps (data.time) beside data.frequency=irregular; there is none"
        )
    if layout == "rows":
        name = id or table.columns[0]
        _no_static(static, where, layout)
        return Roles("rows", name, None, tuple(column for column in table.columns if column != name))
    if layout == "long":
        if id is None:
            raise DataError(f"{where}: expected a column that names the series of each row (data.id); there is none")
        value = _only_value(table, values or [name for name in others if holds_numbers(table, name)], where)
        texts = tuple((name, ()) for name in static if not holds_numbers(table, name))
        columns = (tuple(past), tuple(future))
        return Roles("long", id, time, (value,), *columns, time_format, frequency, tuple(static), texts)
    _no_static(static, where, layout)
    return Roles("wide", None, time, tuple(targets) or None, tuple(past), tuple(future), time_format, frequency)


def _only_value(table: polars.DataFrame, values: list[str], where: str) -> str:
    if len(values) != 1:
        shown = ", ".join(map(repr, values or table.columns))
        raise DataError(f"{where}: expected one column of values (data.target), such as y; it has {shown}")
    return values[0]


def _no_static(static: Sequence[str], where: str, layout: str) -> None:
    if static:
        raise DataError(f"{where}: expected a long table beside data.static ({', '.join(static)}); it is {layout}")


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
    first = [read_table(paths[0])]
    roles = roles or roles_of(first[0], str(paths[0]), **named)
    columns = first[0].columns

    def later(path: Path) -> tuple[str, polars.DataFrame]:
        table = read_table(path)
        needed(table, columns, str(path), "a column of the first file")
        return str(path), table

    def tables() -> Iterator[tuple[str, polars.DataFrame]]:
        yield str(paths[0]), first.pop()
        yield from map(later, paths[1:])

    return panel_of(tables(), roles, most)


def panel_of(tables: Iterable[tuple[str, polars.DataFrame]], roles: Roles, most: int | None = None) -> Read:
    """The series of one or more tables, each with its name for error messages, as one panel.

    Raises:
        DataError: see `read_series`.
    """
    names, parts = [], []
    own = StaticColumns(roles.static, roles.categories)
    for name, table in tables:
        names.append(name)
        parts.append(_rows(table, roles, own, name))
        del table  # texts take several times the memory of numbers
    where = names[0]
    _check_one_kind([part[2] for part in parts], names)
    ids = list(dict.fromkeys(name for names, *_ in parts for name in names))
    number = {name: place for place, name in enumerate(ids)}
    series = _joined([np.array([number[name] for name in names], np.int64)[own] for names, own, *_ in parts])
    columns = _joined([p[3] for p in parts]), _joined([p[4] for p in parts]), _joined([p[5] for p in parts])
    static = own.of_series(ids, series, _joined([part[6] for part in parts]), where)
    roles, notes = replace(roles, categories=own.categories), own.notes()
    if roles.time is None:
        return Read(_counted(ids, series, columns, most, static), roles, notes)
    stamps = Stamps(_joined([part[2].values for part in parts]), parts[0][2].timed, any(part[2].utc for part in parts))
    del parts
    values = stamps.values
    order = np.lexsort((values, series))
    if (moved := np.flatnonzero(order != np.arange(len(order)))).size:
        where_moved = np.unique(series[order[moved]])
        grouped = np.argsort(series, kind="stable")  # mere lack of grouping needs no note
        unsorted = int((np.diff(values[grouped])[np.diff(series[grouped]) == 0] < 0).sum())
        if unsorted:
            notes.append(f"rows out of order in {len(where_moved):,} series, which were sorted by time")
            if roles.frequency == "irregular":
                notes[-1] += "; an hour that daylight-saving time repeats needs stamps with an offset from UTC"
        series, values = series[order], values[order]
        columns = columns[0][order], columns[1][order], columns[2][order]
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
    panel = as_panel(ids, series, places, frequency, columns, static=static)
    return Read(_cut(panel, most), roles, notes)


def _check_one_kind(stamps: list[Stamps], names: list[str]) -> None:
    """Files whose stamps cannot be compared: numbers and times, or times with and without an offset from UTC."""
    found = [(name, *stamp[1:]) for name, stamp in zip(names, stamps, strict=True) if len(stamp.values)]
    for name, *kind in found[1:]:
        if kind != list(found[0][1:]):
            shown = [
                "times with an offset from UTC" if utc else "times without an offset" if timed else "whole numbers"
                for timed, utc in (found[0][1:], kind)
            ]
            raise DataError(f"{name}: expected time stamps as in {found[0][0]} ({shown[0]}); got {shown[1]}")


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _counted(
    ids: list[str], series: Ints, columns: tuple[Floats, Floats, Floats], most: int | None, static: Floats
) -> Panel:
    """A panel of rows without time stamps, numbered from 1 within each series."""
    order = np.argsort(series, kind="stable")
    series = series[order]
    starts = np.searchsorted(series, np.arange(len(ids)))
    places = np.arange(len(series)) - starts[series] + 1
    frequency = named_frequency("step")
    target, past, future = (column[order] for column in columns)
    panel = as_panel(ids, series, places, frequency, (target, past, future), counted=True, static=static)
    return _cut(panel, most)


def _cut(panel: Panel, most: int | None) -> Panel:
    """The panel with at most the first `most` rows of each series."""
    if most is None or (panel.rows <= most).all():
        return panel
    series = np.repeat(np.arange(len(panel)), panel.rows)
    inside = np.arange(len(series)) - panel.starts[series]
    kept = inside < most
    columns = (panel.target[kept], panel.past[kept], panel.future[kept])
    places = panel.when(series[kept], inside[kept])
    return as_panel(panel.ids, series[kept], places, panel.frequency, columns, panel.counted, panel.static)


Rows: TypeAlias = "tuple[list[str], Ints, Stamps, Floats, Floats, Floats, Floats]"


def _rows(table: polars.DataFrame, roles: Roles, columns_of_series: StaticColumns, where: str) -> Rows:
    """The series names; and for each row its series number, time stamp, value, past, future and static covariates."""
    if roles.layout == "rows":
        return _from_rows(table, roles, where)
    needed(table, [*roles.past, *roles.future, *roles.static], where, "as in training")
    past, future = (
        np.stack([numbers(table, name, where) for name in names], 1) if names else np.zeros((table.height, 0))
        for names in (roles.past, roles.future)
    )
    static = columns_of_series.read(table, where)
    stamps = _stamps(table, roles, where)
    if roles.layout == "long":
        assert roles.id is not None
        assert roles.targets is not None
        needed(table, [roles.id, roles.targets[0]], where, "as in training")
        names, own = coded(table, roles.id, where)
        return names, own, stamps, numbers(table, roles.targets[0], where), past, future, static
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
        np.tile(future, (many, 1)), np.tile(static, (many, 1)),
    )  # fmt: skip


def replace_values(stamps: Stamps, values: Ints) -> Stamps:
    """Time stamps of the same kind with other values (N,)."""
    return stamps._replace(values=values)


def _from_rows(table: polars.DataFrame, roles: Roles, where: str) -> Rows:
    assert roles.id is not None
    needed(table, [roles.id], where, "as in training")
    names, own = coded(table, roles.id, where)
    if len(names) < len(own):
        twice = next(name for name, rows in zip(names, np.bincount(own), strict=True) if rows > 1)
        raise DataError(f"{where}: expected one row a series; {twice!r} has more")
    columns = [column for column in table.columns if column != roles.id]
    values = np.stack([numbers(table, name, where) for name in columns], 1)
    lengths = values.shape[1] - np.argmax(~np.isnan(values[:, ::-1]), 1)
    filled = ~np.isnan(values).all(axis=1, keepdims=True)
    kept = (np.arange(values.shape[1]) < lengths[:, None]) & filled
    own, _ = np.nonzero(kept)
    none = np.zeros((len(own), 0))
    return names, own, Stamps(np.zeros(0, np.int64), False), values[kept], none, none, none


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
    once, own = coded(table, roles.time, where)
    if roles.time_format is None and are_integers(once):
        return Stamps(np.array([int(text) for text in once], np.int64)[own], False)
    read: list[tuple[int, bool]] = []
    for place, text in enumerate(once):
        try:
            read.append(read_stamp(text, roles.time_format))
        except (ValueError, OverflowError):
            expected = roles.time_format or "such as 2024-01-31, 2024-01-31 13:00 or 2024-01, or whole numbers"
            hint = "" if roles.time_format else "; other forms are for training to name: data.time_format=%d/%m/%Y"
            row = int((own == place).argmax()) + 1
            raise DataError(
                f"{where}, row {row} of its data: expected a time in column {roles.time!r} ({expected}); got "
                f"{text[:40]!r}{hint}"
            ) from None
    offsets = {offset for _, offset in read}
    if len(offsets) > 1:
        raise DataError(f"{where}: some time stamps in {roles.time!r} have an offset from UTC and some have none")
    return Stamps(np.array([stamp for stamp, _ in read], np.int64)[own], True, True in offsets)


def as_roles(raw: dict[str, Any]) -> Roles:
    """Roles from their JSON object."""
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    categories = tuple((name, tuple(texts)) for name, texts in lists.pop("categories", ()))
    return Roles(**lists, categories=categories)
