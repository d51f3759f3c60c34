"""A panel: many series of different lengths, on one regular time grid or at irregular times, with covariates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.time_stamps import Frequency
from everstep.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_GAPS = 20
"""The most skipped grid steps per row; with more, the frequency is probably wrong and the reader refuses the table."""


@dataclass(frozen=True, eq=False)
class Panel:
    """S series, concatenated in flat arrays of N rows. Each row is one time step; NaN marks a missing number.

    Attributes:
        ids: the names of the series, in order.
        starts: (S,) the first row of each series.
        rows: (S,) the number of rows of each series, including rows after its last value that hold only covariates.
        known: (S,) the number of rows of each series up to its last value.
        first: (S,) the grid step of the first row of each series.
        frequency: the time grid.
        counted: whether rows are numbered from 1 because the file has no time stamps.
        target: (N,) values.
        past: (N, P) covariates known up to the present.
        future: (N, F) covariates known ahead of time.
        static: (S, K) covariates of each series.
        times: (N,) the time stamp of each row of irregular series, whose `first` is 0; None: there is a grid.
    """

    ids: tuple[str, ...]
    starts: Ints
    rows: Ints
    known: Ints
    first: Ints
    frequency: Frequency
    counted: bool
    target: Floats
    past: Floats
    future: Floats
    static: Floats
    times: Ints | None = None

    def __len__(self) -> int:
        """The number of series, S."""
        return len(self.ids)

    def values(self, series: int) -> Floats:
        """The values of one series up to its last value, (known,)."""
        return self.target[self.starts[series] : self.starts[series] + self.known[series]]

    def when(self, series: Ints, rows: Ints) -> Ints:
        """The grid step, or the irregular time stamp, of rows of series, counted from 0 within each series."""
        return self.first[series] + rows if self.times is None else self.times[self.starts[series] + rows]

    def texts(self, series: int, rows: Ints) -> list[str]:
        """The time stamps of rows of one series, as text."""
        return self.frequency.texts(self.when(np.array([series]), rows))

    def digest(self) -> str:
        """The SHA-256 of the names, the rows, the times, the values and the covariates."""
        found = hashlib.sha256("\0".join(self.ids).encode())
        for values in (self.rows, self.first, self.target, self.past, self.future, self.static):
            found.update(np.ascontiguousarray(values).tobytes())
        if self.times is not None:
            found.update(self.times.tobytes())
        return found.hexdigest()

    def with_values(self, target: Floats) -> Panel:
        """The same panel with other values, (N,)."""
        return replace(self, target=target)


def as_panel(
    ids: Sequence[str],
    series: Ints,
    places: Ints,
    frequency: Frequency,
    columns: tuple[Floats, Floats, Floats],
    counted: bool = False,
    static: Floats | None = None,
) -> Panel:
    """A panel from R rows sorted by series and time. Skipped grid steps become rows of missing numbers.

    A series without a row gets one, of missing numbers.

    Args:
        ids: the names of the S series.
        series: (R,) the series number of each row, non-decreasing.
        places: (R,) the grid step, or the irregular time stamp, of each row, increasing within a series.
        frequency: the time grid.
        columns: values (R,), past covariates (R, P) and future covariates (R, F).
        counted: see `Panel`.
        static: (S, K) covariates of each series; None: there are none.

    Example:
        >>> series, places = np.zeros(2, np.int64), np.array([3, 5])
        >>> none = np.zeros((2, 0))
        >>> as_panel(["a"], series, places, Frequency("step", 1), (np.array([1.0, 2.0]), none, none)).target.tolist()
        [1.0, nan, 2.0]
    """
    series, places, columns = _each_with_a_row(len(ids), series, places, columns)
    bounds = np.searchsorted(series, np.arange(len(ids) + 1))
    times = None
    if frequency.irregular:
        times, places = places, np.arange(len(places)) - bounds[:-1][series]
    first, last = places[bounds[:-1]], places[bounds[1:] - 1]
    rows = last - first + 1
    starts = np.cumsum(rows) - rows
    target, past, future = columns
    if rows.sum() > len(series):
        at = places + (starts - first)[series]
        target, past, future = (_spread_out(values, at, rows) for values in columns)
    there = np.where(np.isnan(target), -1, np.arange(len(target)))
    known = np.maximum(np.maximum.reduceat(there, starts) - starts + 1, 0) if len(target) else rows
    static = np.zeros((len(ids), 0)) if static is None else static
    return Panel(tuple(ids), starts, rows, known, first, frequency, counted, target, past, future, static, times)


def usual_gap(panel: Panel, end: Ints) -> float:
    """The median time between neighbouring rows of irregular series, up to row `end` (S,) (exclusive); else 1.

    Microseconds if the stamps are times.
    """
    if panel.times is None:
        return 1.0
    series = np.repeat(np.arange(len(panel)), panel.rows)
    inside = np.arange(len(series)) - panel.starts[series]
    later = (inside > 0) & (inside < end[series])
    gaps = np.diff(panel.times, prepend=0)[later]
    return float(np.median(gaps)) if len(gaps) else 1.0


def usual_step(frequency: Frequency, gap: float) -> int:
    """The median time between rows in whole units of the time stamps, at least one."""
    return max(round(gap / frequency.every), 1) * frequency.every


def with_rows_ahead(panel: Panel, horizon: int, gap: float) -> tuple[Panel, NDArray[np.bool_]]:
    """Irregular series with at least `horizon` rows after the last value; added rows are `gap` apart, in whole units.

    Returns:
        The panel, and for each series (S,) whether it got more rows. A panel on a grid stays as it is.
    """
    more = np.maximum(panel.known + horizon - panel.rows, 0)
    if panel.times is None or not more.any():
        return panel, np.zeros(len(panel), np.bool_)
    step = usual_step(panel.frequency, gap)
    own = np.repeat(np.arange(len(panel)), more)
    ahead = np.arange(len(own)) - np.repeat(np.cumsum(more) - more, more) + 1
    series = np.concatenate([np.repeat(np.arange(len(panel)), panel.rows), own])
    places = np.concatenate([panel.times, panel.times[panel.starts + panel.rows - 1][own] + step * ahead])
    order = np.lexsort((places, series))
    target, past, future = (
        np.concatenate([values, np.full((len(own), *values.shape[1:]), np.nan)])[order]
        for values in (panel.target, panel.past, panel.future)
    )
    columns = (target, past, future)
    longer = as_panel(panel.ids, series[order], places[order], panel.frequency, columns, panel.counted, panel.static)
    return longer, more > 0


def gaps(series: Ints, places: Ints, frequency: Frequency, where: str) -> int:
    """The number of grid steps without a row between the first and the last row of each series.

    Args:
        series, places, frequency: as for `as_panel`.
        where: the source of the rows, for error messages.

    Raises:
        DataError: more than `MOST_GAPS` steps per row have none.
    """
    if frequency.irregular:
        return 0
    left_out = int((np.diff(places)[np.diff(series) == 0] - 1).sum(dtype=np.float64))
    if left_out > MOST_GAPS * len(series):
        raise DataError(
            f"{where}: on a grid of one {frequency.name}, {left_out:,} steps are left out between {len(series):,} "
            "rows; correct the time stamps, or train with data.frequency as the distance between rows"
        )
    return left_out


def _spread_out(values: Floats, rows: Ints, sizes: Ints) -> Floats:
    found: Floats = np.full((int(sizes.sum()), *values.shape[1:]), np.nan)
    found[rows] = values
    return found


def joined(before: Panel, after: Panel, what: str) -> tuple[Panel, Ints]:
    """Join two panels whose series continue from the first to the second, or are in one of them alone.

    Args:
        before: the earlier panel.
        after: the later panel. If rows are counted, its first row follows the last value of the same series.
        what: the name of the second file, for error messages.

    Returns:
        The joined panel, and for each series (S,) the row where the second panel begins.

    Raises:
        DataError: the panels have different time grids, or the second has rows at times that the first already has.
    """
    if before.counted != after.counted or (not before.counted and not before.frequency.agrees(after.frequency)):
        names = [panel.frequency.described if not panel.counted else "no time stamps" for panel in (after, before)]
        raise DataError(f"{what}: expected the time stamps of the training data ({names[1]}); got {names[0]}")
    ids = list(dict.fromkeys([*before.ids, *after.ids]))
    number = {name: place for place, name in enumerate(ids)}
    if after.counted:  # its rows go on from the last value, not from the last row
        seen = np.zeros(len(ids), np.int64)
        seen[parts_own(before, number)] = before.known
        after = replace(after, first=seen[parts_own(after, number)] + 1)
    parts = [_placed_rows(panel, number) for panel in (before, after)]
    (series_a, places_a, *_), (series_b, places_b, *_) = parts
    ends = np.full(len(ids), -1 << 62)
    known = _known_rows(before)
    np.maximum.at(ends, series_a[known], places_a[known])
    ahead = places_a <= ends[series_a]  # the second file repeats the covariates known ahead
    clash = np.flatnonzero(places_b <= ends[series_b])
    if len(clash):
        name, stamp = ids[series_b[clash[0]]], before.frequency.texts(places_b[clash[:1]])[0]
        raise DataError(
            f"{what}: expected rows after those of data.train; series {name!r} has {stamp} there already, and "
            f"{len(clash):,} rows do"
        )
    columns = [np.concatenate([a[ahead], b]) for a, b in zip(parts[0], parts[1], strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    series, places, target, past, future = (column[order] for column in columns)
    gaps(series, places, before.frequency, what)
    static = np.full((len(ids), before.static.shape[1]), np.nan)
    for part in (after, before):
        own = parts_own(part, number)
        static[own] = np.where(np.isnan(part.static), static[own], part.static)
    panel = as_panel(ids, series, places, before.frequency, (target, past, future), before.counted, static)
    begins = np.full(len(ids), 1 << 62)
    np.minimum.at(begins, series_b, places_b)
    if panel.times is not None:
        begins = np.bincount(series[places < begins[series]], minlength=len(ids))  # panel.first is 0
    return panel, np.minimum(begins - panel.first, panel.known)


def _placed_rows(panel: Panel, number: dict[str, int]) -> tuple[Any, ...]:
    """Of each row its series, as numbered, and its place in time; the values and covariates of all rows."""
    series = np.repeat(np.arange(len(panel)), panel.rows)
    inside = np.arange(len(series)) - panel.starts[series]
    return parts_own(panel, number)[series], panel.when(series, inside), panel.target, panel.past, panel.future


def _each_with_a_row(
    count: int, series: Ints, places: Ints, columns: tuple[Floats, Floats, Floats]
) -> tuple[Ints, Ints, tuple[Floats, Floats, Floats]]:
    """The rows, and one of missing numbers for each of `count` series that has none."""
    none = np.flatnonzero(np.bincount(series, minlength=count) == 0)
    if not len(none):
        return series, places, columns
    series = np.concatenate([series, none])
    order = np.argsort(series, kind="stable")
    places = np.concatenate([places, np.full(len(none), places[0] if len(places) else 1)])
    target, past, future = (
        np.concatenate([values, np.full((len(none), *values.shape[1:]), np.nan)])[order] for values in columns
    )
    return series[order], places[order], (target, past, future)


def parts_own(panel: Panel, number: dict[str, int]) -> Ints:
    """The series numbers of a panel's series, looked up by name, (S,)."""
    return np.array([number[name] for name in panel.ids], np.int64)


def _known_rows(panel: Panel) -> NDArray[np.bool_]:
    series = np.repeat(np.arange(len(panel)), panel.rows)
    return np.arange(len(series)) - panel.starts[series] < panel.known[series]
