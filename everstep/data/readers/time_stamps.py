"""Time stamps: parse them, find the regular grid that they lie on, if they do, and format them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.errors import ConfigError, DataError

Ints = NDArray[np.int64]
Unit = Literal["step", "microsecond", "business day", "month"]
SECOND = 1_000_000
DAY = 86_400 * SECOND
_LENGTHS = {"second": SECOND, "minute": 60 * SECOND, "hour": 3600 * SECOND, "day": DAY, "week": 7 * DAY}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_SEASONS = {"day": 7, "week": 52, "month": 12, "quarter": 4, "business day": 5}
_MONTH = re.compile(r"(\d{4})[-/](\d{1,2})")
_DIGITS = re.compile(r"(19|20)\d{6}")


class Stamps(NamedTuple):
    """Time stamps as numbers: plain integers, or microseconds since 1970-01-01.

    Attributes:
        values: (N,) int64.
        timed: whether the values are microseconds.
        utc: whether the texts had an offset from UTC; the values are then in UTC.
    """

    values: Ints
    timed: bool
    utc: bool = False


class Frequency(NamedTuple):
    """A regular time grid: step i is at `phase` + `every` · i units. Or irregular times, whose steps are the stamps.

    Attributes:
        unit: "step" (plain integers), or "microsecond", "business day" or "month", counted from 1970-01-01.
        every: the number of units from one step to the next.
        phase: the position of step 0 in units, 0 … every − 1.
        month_end: whether the stamp of a month is its last day; else its first.
        utc: whether to print stamps with the offset +00:00.
        irregular: whether there is no grid; `every` is then a day if all stamps are dates, else 1.
    """

    unit: Unit
    every: int
    phase: int = 0
    month_end: bool = False
    utc: bool = False
    irregular: bool = False

    @property
    def name(self) -> str:
        """The name of the step length.

        >>> Frequency("microsecond", 2 * 3600 * SECOND).name, Frequency("month", 3).name
        ('2 hours', 'quarter')
        """
        if self.irregular:
            return "irregular"
        lengths = {"microsecond": _LENGTHS, "month": _MONTHS}.get(self.unit, {self.unit: 1})
        best = max(
            (name for name, size in lengths.items() if self.every % size == 0), key=lengths.__getitem__, default=""
        )
        if not best:
            return f"{self.every / SECOND:g} seconds"
        count = self.every // lengths[best]
        return best if count == 1 else f"{count} {best}s"

    @property
    def season(self) -> int:
        """The usual season in steps: a day for steps below a day, a week for days, a year for months; 1: none."""
        if self.irregular:
            return 1
        if self.unit == "microsecond" and self.every < DAY:
            return DAY // self.every if DAY % self.every == 0 else 1
        return _SEASONS.get(self.name, 1)

    def agrees(self, other: Frequency) -> bool:
        """Whether both grids have the same steps; below a day also whether both or neither are in UTC.

        >>> hour = named_frequency("hour")
        >>> hour.agrees(hour._replace(phase=60 * SECOND)), hour.agrees(hour._replace(utc=True))
        (False, False)
        """
        if self.irregular or other.irregular:
            return (self.irregular, self.unit, self.utc) == (other.irregular, other.unit, other.utc)
        below_a_day = self.unit == "microsecond" and self.every % DAY != 0
        return self[:3] == other[:3] and (self.utc == other.utc or not below_a_day)

    @property
    def described(self) -> str:
        """The name, and one of the stamps where grids of the same name differ.

        >>> named_frequency("hour")._replace(phase=60 * SECOND).described
        'hour, such as at 1970-01-01 00:01:00'
        """
        if self.every == 1 or self.irregular:
            return self.name
        return f"{self.name}, such as at {self.texts(np.zeros(1, np.int64))[0]}"

    def places(self, stamps: Ints) -> Ints:
        """The grid step of each stamp (N,); a stamp off the grid gives the step before it."""
        return stamps if self.irregular else (_units(self.unit, stamps) - self.phase) // self.every

    def on_grid(self, stamps: Ints) -> NDArray[np.bool_]:
        """Whether each stamp (N,) lies on the grid."""
        found: NDArray[np.bool_] = self.stamps(self.places(stamps)) == stamps
        return found

    def stamps(self, places: Ints) -> Ints:
        """The stamp of each grid step (N,)."""
        if self.irregular:
            return places
        units = places * self.every + self.phase
        if self.unit == "month":
            months = (units + 1 if self.month_end else units).astype("datetime64[M]").astype("datetime64[D]")
            return (
                (months - np.timedelta64(1, "D") if self.month_end else months)
                .astype("datetime64[us]")
                .astype(np.int64)
            )
        if self.unit == "business day":
            days = np.busday_offset(np.datetime64("1970-01-01"), units, roll="forward")
            return days.astype("datetime64[us]").astype(np.int64)
        return units

    def texts(self, places: Ints) -> list[str]:
        """The stamps of grid steps as text: an integer, a date, or a date and time."""
        stamps = self.stamps(places)
        if self.unit == "step":
            return [str(stamp) for stamp in stamps]
        times = stamps.astype("datetime64[us]")
        if not (stamps % DAY).any() and (self.unit != "microsecond" or self.every % DAY == 0):
            return [str(day) for day in times.astype("datetime64[D]")]
        whole = times if (stamps % SECOND).any() else times.astype("datetime64[s]")
        return [str(time).replace("T", " ") + ("+00:00" if self.utc else "") for time in whole]


def _units(unit: Unit, stamps: Ints) -> Ints:
    if unit == "month":
        return stamps.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    if unit == "business day":
        days = stamps.astype("datetime64[us]").astype("datetime64[D]")
        return np.busday_count(np.datetime64("1970-01-01"), days).astype(np.int64)
    return stamps


def read_stamp(text: str, form: str | None = None) -> tuple[int, bool]:
    """Parse one time stamp: microseconds since 1970-01-01, and whether the text has an offset from UTC.

    `form` is a `strptime` format; None: ISO 8601, also with slashes, or year and month.

    >>> read_stamp("1970-01-02"), read_stamp("1970-02"), read_stamp("1970-01-01 02:00:00+02:00")
    ((86400000000, False), (2678400000000, False), (0, True))

    Raises:
        ValueError: the text is not a time.
    """
    if form is not None:
        time = datetime.strptime(text, form)
    elif month := _MONTH.fullmatch(text):
        time = datetime(int(month[1]), int(month[2]), 1)
    else:
        time = datetime.fromisoformat(text.replace("/", "-"))
    offset = time.tzinfo is not None
    whole = time.astimezone(UTC) if offset else time.replace(tzinfo=UTC)
    passed = whole - datetime(1970, 1, 1, tzinfo=UTC)
    return passed.days * DAY + passed.seconds * SECOND + passed.microseconds, offset


def are_integers(texts: list[str]) -> bool:
    """Whether all texts are integers, and not all of them dates such as 20160701."""
    if all(_DIGITS.fullmatch(text) for text in texts):
        try:
            [datetime.strptime(text, "%Y%m%d") for text in texts]
            return False
        except ValueError:
            return True
    return all(re.fullmatch(r"[+-]?\d{1,18}", text) for text in texts)


def named_frequency(name: str) -> Frequency:
    """A frequency by its name: "hour", "15 minutes", "business day", "month", "step", "irregular".

    Raises:
        ConfigError: the name is unknown.
    """
    if name == "irregular":
        return Frequency("microsecond", 1, irregular=True)
    found = re.fullmatch(
        r"(?:([1-9]\d{0,8}) )?(second|minute|hour|day|week|business day|month|quarter|year|step)s?", name
    )
    if found is None:
        raise ConfigError(
            "data.frequency: expected such as hour, day, business day, week, month, quarter, year, step, 15 minutes or "
            f"irregular; got {name!r}"
        )
    count, unit = int(found[1] or 1), found[2]
    if unit in _LENGTHS:
        return Frequency("microsecond", count * _LENGTHS[unit])
    if unit in _MONTHS:
        return Frequency("month", count * _MONTHS[unit])
    return Frequency("step" if unit == "step" else "business day", count)


def inferred(stamps: Stamps, inside: NDArray[np.bool_], given: str | None, where: str) -> Frequency:
    """Infer the regular grid of the stamps. The step is the most frequent difference between neighbours.

    With the name "irregular" there is no grid.

    Args:
        stamps: N ≥ 1 time stamps, increasing within each series.
        inside: (N − 1,) whether a stamp and the next belong to the same series.
        given: the name of the frequency; None: infer it.
        where: the source of the stamps, for error messages.

    Raises:
        DataError: the stamps do not lie on one grid, or single rows do not determine it.

    >>> days = Stamps(np.arange(5) * DAY, True)
    >>> inferred(days, np.ones(4, bool), None, "x").name
    'day'
    """
    values = stamps.values
    units: tuple[Unit, ...] = _candidates(stamps, inside)
    wanted = None if given is None else named_frequency(given)
    if wanted is not None and wanted.irregular:
        dates = stamps.timed and not (values % DAY).any()
        return Frequency("microsecond" if stamps.timed else "step", DAY if dates else 1, 0, False, stamps.utc, True)
    if wanted is not None:
        if (wanted.unit == "step") == stamps.timed:
            kinds = ("times", "whole numbers") if stamps.timed else ("whole numbers", "times")
            raise DataError(
                f"{where}: expected {kinds[1]} as time stamps, since data.frequency is {given!r}; got {kinds[0]}"
            )
        units = (wanted.unit,)
    for unit in units:
        gaps = np.diff(_units(unit, values))[inside]
        if wanted is None and not len(gaps):
            raise DataError(
                f"{where}: one row a series does not tell the frequency; give more rows, or train with data.frequency, "
                "such as day"
            )
        every = wanted.every if wanted else int(_commonest(gaps))
        if every < 1:
            continue
        ends = unit == "month" and not (_days(values) == 1).all()
        phase = int(_units(unit, values[:1])[0]) % every
        found = Frequency(unit, every, phase, ends, stamps.utc)
        if found.on_grid(values).all():
            return found
    raise DataError(_off_grid(stamps, inside, given, where))


def _candidates(stamps: Stamps, inside: NDArray[np.bool_]) -> tuple[Unit, ...]:
    if not stamps.timed:
        return ("step",)
    if (stamps.values % DAY).any():
        return ("microsecond",)
    days, months = stamps.values.astype("datetime64[us]").astype("datetime64[D]"), _days(stamps.values)
    last = _days(stamps.values + DAY) == 1
    if (months == 1).all() or last.all():
        return ("month", "microsecond")
    gaps = np.diff(stamps.values)[inside]
    working = np.is_busday(days).all() and len(gaps) and _commonest(gaps) == DAY and (gaps == 3 * DAY).any()
    return ("business day", "microsecond") if working else ("microsecond",)


def _days(stamps: Ints) -> Ints:
    """The day of the month, from 1, (N,)."""
    times = stamps.astype("datetime64[us]")
    days = times.astype("datetime64[D]") - times.astype("datetime64[M]").astype("datetime64[D]")
    found: Ints = days.astype(np.int64) + 1
    return found


def _commonest(values: Ints) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()]) if len(found) else 0


def _off_grid(stamps: Stamps, inside: NDArray[np.bool_], given: str | None, where: str) -> str:
    values, gaps = stamps.values, np.diff(stamps.values)
    unit: Unit = "microsecond" if stamps.timed else "step"
    every = _commonest(gaps[inside])
    place = int(np.flatnonzero(inside & (gaps % max(every, 1) != 0))[:1].sum())
    shown = Frequency(unit, 1, 0, False, stamps.utc).texts(values[place : place + 2])
    usual = given or Frequency(unit, max(every, 1)).name
    return (
        f"{where}: mixed frequencies: most rows are one {usual} apart, but {' and '.join(shown)} are not a whole "
        "number of those; round the time stamps to a grid, train a model for each frequency, or one with "
        "data.frequency=irregular, which reads the time between rows. Hours that "
        "daylight-saving time repeats or leaves out need stamps with an offset (2024-03-31T03:00+02:00)"
    )
