"""The data of forecasting: from a recipe's `data` section to panels, splits and windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import compress
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from everstep.data.calendar import cycles
from everstep.data.panel import Ints, Panel, joined, usual_gap
from everstep.data.readers.series import Read, Roles, panel_of, read_series
from everstep.data.readers.tables import table_of
from everstep.data.readers.time_stamps import SECOND, Frequency, named_frequency
from everstep.data.readers.trained_form import check_form
from everstep.data.text.text_files import expand
from everstep.data.windows import Windows, check_some
from everstep.errors import ConfigError, DataError
from everstep.networks.forecaster_section import ForecasterSection, WindowShape, checked_sizes
from everstep.networks.learned_series import (
    LearnedSeries,
    Scaling,
    check_counts,
    fitted_covariates,
    fitted_scale,
    usual_scale,
)
from everstep.sections import Count, Files, NonNegative, Section

VALIDATED = 1 << 15
"""The approximate largest number of windows in a validation."""
SHOWN = 5
"""The most series names in a note."""


class SeriesSection(Section):
    """Series of numbers: files, columns, splits, scaling."""

    train: Files = "everstep:rides"
    """path, list or globs of CSV, TSV, JSON lines or Parquet: long (one value per row), wide (one series per column),
    or one series per row; ${EVERSTEP_DATA} is filled in"""
    valid: Files | None = None
    """files of the rows after those of train; null: valid_part of the training rows"""
    test: Files | None = None
    """files of the rows after those of train and valid; null: test_part of the training rows"""
    valid_part: NonNegative | None = None
    """the last rows before the test split: below 1 a share of each series, else steps; null: one horizon; 0: none"""
    test_part: NonNegative | None = None
    """the last rows, if test is null: below 1 a share of each series, else steps; 0: none; null: one horizon, or none
    if valid is given"""
    rows: Count | None = None
    """number of rows to read of each series, from the first; null: all"""
    layout: Literal["auto", "long", "wide", "rows"] = "auto"
    """form of the files; auto: by the names of the columns"""
    id: str | None = None
    """column of series names; null: unique_id, item_id, series_id, series or id, if one exists"""
    time: str | None = None
    """column of time stamps; null: ds, date, timestamp, time, month, …, if one exists, else rows are counted"""
    target: str | tuple[str, ...] | None = None
    """column of values, in wide files one or more; null: y, value or target; in wide files all"""
    past: tuple[str, ...] = ()
    """columns of covariates known up to the present"""
    future: tuple[str, ...] = ()
    """columns of covariates known ahead of time; prediction needs them for the whole horizon"""
    static: tuple[str, ...] = ()
    """columns of covariates that are the same in all rows of a series, in long tables: numbers, or text (categories)"""
    time_format: str | None = None
    """format of the time stamps, such as %d/%m/%Y; null: ISO 8601 or whole numbers"""
    frequency: str | None = None
    """step of the time grid: hour, day, business day, week, month, 15 minutes, …; null: the most frequent difference;
    irregular: there is no grid, a row is a step, and the network reads the time between rows"""
    season: Annotated[int, Field(ge=1)] | None = None
    """season in steps; null: a day for hours, a week for days, a year for months; 1: none"""
    calendar: bool = True
    """adds the time of the day, the week and the year as covariates, if the files have time stamps"""
    scaling: Scaling = "mean"
    """scaling of each series by its training split: none; mean: divided by mean |y|; standard; median; log"""
    figures: Literal["values", "scaled"] = "values"
    """what errors are measured on: values in data units, or scaled values, as is usual for ETT"""

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_part != 0

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Files and parts that exclude one another, columns in two roles, and unknown frequencies."""
        for split in ("valid", "test"):
            if getattr(self, split) is not None and getattr(self, f"{split}_part") is not None:
                yield f"{split}_part", f"expected null where {split} is given; got {getattr(self, f'{split}_part'):g}"
        targets = (self.target,) if isinstance(self.target, str) else self.target or ()
        named = [*targets, *self.past, *self.future, *self.static, *filter(None, (self.id, self.time))]
        if twice := next((name for name in named if named.count(name) > 1), None):
            yield "target", f"expected each column in one role; {twice!r} has more"
        if self.frequency is not None:
            try:
                named_frequency(self.frequency)
            except ConfigError as error:
                yield "frequency", str(error).removeprefix("data.frequency: ")


class SeriesPart(NamedTuple):
    """A split: the target rows of each series, from `begin` to `end` (exclusive), (S,) each."""

    begin: Ints
    end: Ints


class SeriesData:
    """The panel of a recipe and its splits. It reads the files once, on first use.

    Args:
        section: a recipe's `data`.
        model: a recipe's `model`, for the horizon.
        seed: the seed of the order of training windows.

    Raises:
        DataError: on first use: a file cannot be read or used, or there is no such split.
    """

    def __init__(self, section: SeriesSection, model: ForecasterSection, seed: int):
        self.section, self.model, self._seed = section, model, seed

    def splits(self) -> tuple[str, ...]:
        """The splits of the recipe, among train, valid and test."""
        section = self.section
        part = section.test_part != 0 if section.valid is None else bool(section.test_part)
        tested = section.test is not None or part
        return ("train", *(("valid",) if self.section.validated else ()), *(("test",) if tested else ()))

    def _read(self, files: Files, like: Read | None = None) -> Read:
        section = self.section
        targets = (section.target,) if isinstance(section.target, str) else section.target or ()
        return read_series(
            expand(files),
            None if like is None else _on_grid(like.roles, like.panel.frequency, like.panel.counted),
            section.rows,
            layout=section.layout,
            id=section.id,
            time=section.time,
            targets=targets,
            past=section.past,
            future=section.future,
            static=section.static,
            time_format=section.time_format,
            frequency=section.frequency,
        )

    @cached_property
    def train(self) -> Read:
        """The files of data.train."""
        return self._read(self.section.train)

    @cached_property
    def season(self) -> int:
        """The season in steps; 1: none."""
        return self.section.season or self.train.panel.frequency.season

    @cached_property
    def _whole(self) -> tuple[Panel, dict[str, SeriesPart]]:
        """All series with the rows of all files, and the splits."""
        panel = self.train.panel
        ends = panel.known
        borders: dict[str, Ints] = {}
        for split in ("valid", "test"):
            files = getattr(self.section, split)
            if files is not None:
                more = self._read(files, self.train).panel
                panel, begins = joined(panel, more, f"data.{split}")
                ends = np.concatenate([ends, np.zeros(len(panel) - len(ends), np.int64)])
                more_series = np.zeros(len(panel) - len(next(iter(borders.values()), begins)), np.int64)
                borders = {name: np.concatenate([at, more_series]) for name, at in borders.items()}
                borders[split] = begins
        return panel, self._parts(panel, ends, borders)

    def _parts(self, panel: Panel, ends: Ints, borders: dict[str, Ints]) -> dict[str, SeriesPart]:
        horizon = checked_sizes(self.model, self.season)[1]
        parts: dict[str, SeriesPart] = {}
        stop = panel.known
        whole = stop if "valid" in borders else ends
        for split in ("test", "valid"):
            if split not in self.splits():
                continue
            part = getattr(self.section, f"{split}_part")
            if split in borders:
                begin = np.minimum(borders[split], stop)
            else:
                until = np.minimum(stop, whole)
                size = np.full(len(panel), horizon) if part is None else _sizes(part, whole)
                begin, stop = np.maximum(until - size, 0), until
            parts[split] = SeriesPart(begin, stop)
            stop = begin
        parts["train"] = SeriesPart(np.zeros(len(panel), np.int64), np.minimum(stop, ends))
        return parts

    @property
    def panel(self) -> Panel:
        """All series, in units of the data."""
        return self._whole[0]

    def part(self, split: str) -> SeriesPart:
        """The target rows of a split.

        Raises:
            DataError: the recipe has no such split.
        """
        if split not in self.splits():
            raise DataError(f"this run has no {split} split; it has {', '.join(self.splits())}")
        return self._whole[1][split]

    def learned(self) -> LearnedSeries:
        """Fit the sizes and the scaling of each series to the training split.

        Raises:
            DataError: the files cannot be read or used.
            ConfigError: the window, the segment and the season do not fit together, see `checked_sizes`.
        """
        section, read = self.section, self.train
        panel, end = self.panel, self.part("train").end
        if self.model.head == "negative-binomial":
            check_counts(panel)
        window, horizon, segment = checked_sizes(self.model, self.season)
        trained = range(len(read.panel))  # series that only later files have come after them
        series = np.repeat(np.arange(len(panel)), panel.rows)
        inside = np.arange(len(series)) - panel.starts[series] < end[series]
        covariates = fitted_covariates(panel.past[inside], panel.future[inside], panel.static[: len(read.panel)])
        values = [panel.values(place)[: end[place]] for place in trained]
        there = [not np.isnan(own).all() for own in values]
        fitted = [fitted_scale(own, section.scaling) for own in values]
        usual = usual_scale(list(compress(fitted, there)))
        scales = {panel.ids[place]: fitted[place] if there[place] else usual for place in trained}
        calendar = section.calendar and bool(cycles(panel.frequency))
        irregular, given = panel.frequency.irregular, panel.future.shape[1] + panel.static.shape[1]
        shape = WindowShape(
            window,
            horizon,
            segment,
            self.season,
            panel.past.shape[1],
            given + 2 * irregular + calendar * 2 * len(cycles(panel.frequency)),
            len(scales),
            bool(np.isnan(panel.target[inside]).any() or (end < window + horizon).any()),
            given if irregular else -1,
        )
        return LearnedSeries(
            read.roles,
            panel.frequency,
            panel.counted,
            self.season,
            shape,
            calendar,
            section.scaling,
            scales,
            covariates,
            usual_gap(panel, end),
        )

    def windows(
        self, split: str, learned: LearnedSeries, batch_size: int, learn: bool = False, most: int | None = None
    ) -> Windows:
        """The windows of a split at stride 1, or at the smallest stride that gives about `most` windows or fewer."""
        part, shape = self.part(split), learned.shape
        last = part.end - shape.horizon
        if split == "train":
            begin = np.minimum(shape.window, np.maximum(last // 2, 1))
        else:
            begin = np.maximum(part.begin, 1)
            last = np.where(part.end > part.begin, np.maximum(last, part.begin), part.begin - 1)
        total = int(np.maximum(last - begin + 1, 0).sum())
        return Windows(
            learned.normalised(self.panel),
            begin,
            last,
            part.end,
            window=shape.window,
            horizon=shape.horizon,
            batch_size=batch_size,
            calendar=learned.calendar,
            seed=self._seed if learn else None,
            stride=1 if most is None else max(1, -(-total // most)),
            usual_gap=learned.usual_gap,
        )

    def told(self, learned: LearnedSeries) -> Iterator[str]:
        """Lines for the user: columns, numbers of series and windows, rows left out, suspicious input."""
        panel, roles = self.panel, self.train.roles
        columns = f"{roles.layout} table" + (f", time in {roles.time!r}" if roles.time else ", rows counted")
        yield f"data: {columns}; {len(panel):,} series"
        for split in self.splits():
            windows = self.windows(split, learned, 1024)
            check_some(windows, split, "data.valid_part, data.test_part")
            short = np.setdiff1d(np.arange(len(panel)), windows.series).tolist()
            left = f"; {len(short):,} series too short or empty: {_named(panel, short)}" if short else ""
            yield f"{split}: {windows.number:,} windows{left}"
        for line in self.train.notes:
            yield f"note: {line}"
        part = self.part("train")
        missing = sum(int(np.isnan(panel.values(s)[: part.end[s]]).sum()) for s in range(len(panel)))
        if missing:
            yield f"note: {missing:,} missing values in training, which have no loss and are read as missing"
        empty = [s for s in range(len(panel)) if np.isnan(panel.values(s)[: part.end[s]]).all()]
        if empty and learned.scaling not in ("none", "log"):
            yield f"note: {len(empty):,} series without training values, scaled by the medians: {_named(panel, empty)}"
        constant = [s for s in range(len(panel)) if _constant(panel.values(s)[: part.end[s]])]
        if constant:
            yield f"note: {len(constant):,} series constant in training, scaled by 1: {_named(panel, constant)}"
        if np.isnan(panel.past).any() or np.isnan(panel.future).any():
            yield "note: some covariates are missing; the network reads their mean instead"

    def given(self, lines: Iterable[str], learned: LearnedSeries) -> Read:
        """Read the lines of a table in the form of the training files.

        Raises:
            DataError: the table cannot be read, has no rows, or has another time grid.
        """
        import polars as pl

        content = "\n".join(line.removesuffix("\n") for line in lines).encode()
        where = "the history"
        try:
            table = table_of(content, json=content.lstrip().startswith(b"{"))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{where}: cannot be read as a table: {str(error).splitlines()[0]}") from None
        if not table.height:
            raise DataError(f"{where}: expected a header and rows below it; got none")
        check_form(table, learned.roles, where)
        found = panel_of([(where, table)], _on_grid(learned.roles, learned.frequency, learned.counted))
        if not learned.counted and not learned.frequency.agrees(found.panel.frequency):
            raise DataError(
                f"{where}: expected time stamps on the grid of the training data (one {learned.frequency.described}); "
                f"got {found.panel.frequency.described}"
            )
        if learned.frequency.irregular:  # a history may be of dates alone, where training has times of the day
            found = replace(found, panel=replace(found.panel, frequency=learned.frequency))
        return found


def _on_grid(roles: Roles, grid: Frequency, counted: bool) -> Roles:
    """The roles with the frequency of a grid, as far as it has a name, so that few rows need not determine it."""
    nameless = counted or (grid.unit == "microsecond" and grid.every % SECOND and not grid.irregular)
    return replace(roles, frequency=None if nameless else grid.name)


def _sizes(part: float, known: Ints) -> Ints:
    return np.round(known * part).astype(np.int64) if part < 1 else np.full(len(known), int(part))


def _constant(values: NDArray[np.float64]) -> bool:
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool((known == known[0]).all())


def _named(panel: Panel, series: list[int]) -> str:
    shown = ", ".join(panel.ids[place] for place in series[:SHOWN])
    return shown + (", …" if len(series) > SHOWN else "")
