"""The forecasts of a model: errors on windows, and tables of predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from everstep.data.panel import Floats, with_rows_ahead
from everstep.data.readers.series import Read
from everstep.data.windows import Windows
from everstep.errors import DataError
from everstep.measures.forecast_errors import (
    LEVELS,
    TENTHS,
    Forecasts,
    Reals,
    as_levels,
    forecast_measures,
    mase_scale,
    owa,
)
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.run import warn
from everstep.runs.series_data import SHOWN, SeriesData
from everstep.runs.task import Prediction

Progress = Callable[[int, int], None]
R = TypeVar("R", bound=Reals)
BLOCK = 4096
"""Windows that are converted at once."""


class Said(NamedTuple):
    """The forecasts of a model for N windows, in units of the network.

    Attributes:
        found: the forecasts.
        target: (N, H) the targets; NaN where they are missing.
        windows: the windows.
        loss: the mean loss per value.
    """

    found: Forecasts
    target: Floats
    windows: Windows
    loss: float


@torch.no_grad()
def measured(model: Forecaster, windows: Windows, progress: Progress = lambda done, total: None) -> Said:
    """Run the model in eval mode on all windows."""
    model.eval()
    device = model.write.weight.device
    means, targets = (np.empty((windows.number, windows.horizon)) for _ in range(2))
    quantiles: NDArray[np.float32] | None = None
    total, count, begin = 0.0, 0, 0
    for index in range(len(windows)):
        batch = windows.batch(0, index).to(device)
        mean, bands = model.predicted(batch)
        part = slice(begin, begin + batch.rows)
        means[part], targets[part] = mean.cpu().numpy(), batch.target.cpu().numpy()
        if bands is not None:
            if quantiles is None:
                quantiles = np.empty((*means.shape, bands.shape[2]), np.float32)
            quantiles[part] = bands.cpu().numpy()
        if batch.count:
            total, count = total + float(model.losses(batch).double().sum()), count + batch.count
        begin += batch.rows
        progress(index + 1, len(windows))
    return Said(Forecasts(means, quantiles), targets, windows, total / max(count, 1))


class InUnits(NamedTuple):
    """The targets of N windows, in the units of the errors.

    Attributes:
        target: (N, H) the targets.
        series: (N,) the series numbers.
        scales: (N,) the scale of MASE; NaN: none.
        once: whether each series has one window.
    """

    target: Floats
    series: NDArray[np.int64]
    scales: Floats
    once: bool


def in_units(values: R, windows: Windows, data: SeriesData, learned: LearnedSeries) -> R:
    """Convert values (N, …) in units of the network to the units of the errors."""
    if data.section.figures == "scaled":
        return values
    shift, scale = learned.scales_of(data.panel)
    found = np.empty_like(values)
    for begin in range(0, len(values), BLOCK):
        part = slice(begin, begin + BLOCK)
        own = windows.series[part]
        found[part] = learned.restored(values[part].astype(np.float64), shift[own], scale[own])
    return found


def targets_of(target: Floats, windows: Windows, data: SeriesData, learned: LearnedSeries, split: str) -> InUnits:
    """The targets in the units of the errors, with the scale of MASE from the rows of each series before the split."""
    panel = learned.normalised(data.panel) if data.section.figures == "scaled" else data.panel
    begin = data.part(split).begin
    scales = np.full(len(panel), np.nan)
    for place in np.unique(windows.series):
        scales[place] = mase_scale(panel.values(place)[: max(begin[place], 1)], learned.season)
    once = len(np.unique(windows.series)) == windows.number
    return InUnits(in_units(target, windows, data, learned), windows.series, scales[windows.series], once)


def figures_of(said: Said, data: SeriesData, learned: LearnedSeries, split: str, rivals: Any = None) -> dict[str, Any]:
    """All figures of a split. `rivals`, a `SeriesRivals`, adds those of the rivals that are quick to fit."""
    windows = said.windows
    came = targets_of(said.target, windows, data, learned, split)
    quantiles = None if said.found.quantiles is None else in_units(said.found.quantiles, windows, data, learned)
    found = Forecasts(in_units(said.found.mean, windows, data, learned), quantiles)
    ours: dict[str, Any] = {
        "loss": said.loss, "windows": windows.number,
        **forecast_measures(found, came.target, came.series, came.scales),
    }  # fmt: skip
    if data.model.measured and split == "valid":  # its quantiles were fitted to these windows
        ours |= {"coverage_80": None, "coverage_90": None}
    if rivals is None:
        return ours
    others = rivals.beside(split, found)
    if came.once:
        naive2: dict[str, Any] = next((other for other in others if other["name"] == "Naive2"), {})
        ours["owa"] = owa(ours, naive2)
    better = [other["name"] for other in others if (other["mase"] or 0) < (ours["mase"] or 0)]
    return {**ours, "better_by_mase": better, "rivals": others}


HEADER = ["unique_id", "ds", "mean", *as_levels(TENTHS)]
MEANING = {
    "loss": "mean loss of the head per value, as in training",
    "mse": "mean squared error of the mean",
    "rmse": "square root of mse",
    "mae": "mean absolute error of the median",
    "mase": "mae over that of the seasonal naive rule in each series' past; below 1 is better",
    "smape": "symmetric mean absolute percentage error of the median",
    "owa": "mean of sMAPE and MASE over those of Naive2; below 1 is better",
    "wql": "mean quantile loss over the mean size of the values",
    "crps": "continuous ranked probability score, from 11 quantiles",
    "coverage_80": "share of values from q0.1 to q0.9",
    "coverage_90": "share of values from q0.05 to q0.95",
}
"""What each figure of a forecast means."""


def last_windows(given: Read, learned: LearnedSeries, fewest: int = 1) -> tuple[Windows, LearnedSeries]:
    """A window of each series of a history, whose horizon follows its last value; and the scales of all series.

    Series with fewer than `fewest` rows up to their last value have no window, which a note on stderr tells.

    Raises:
        DataError: no series is long enough, or covariates known ahead are missing.
    """
    panel, shape = given.panel, learned.shape
    kept = panel.known >= fewest
    if not kept.all():
        _tell_left_out([panel.ids[place] for place in np.flatnonzero(~kept)], fewest, bool(kept.any()))
    check_covariates(given, shape.horizon, np.flatnonzero(kept))
    learned = learned.with_scales_of(panel)
    panel, added = with_rows_ahead(panel, shape.horizon, learned.usual_gap)
    if (added := added & kept).any():
        warn(
            f"note: {added.sum():,} of {kept.sum():,} series have fewer than {shape.horizon} time stamps after their "
            "last value (rows without a value); more were added at the median distance of training"
        )
    windows = Windows(
        learned.normalised(panel),
        panel.known,
        np.where(kept, panel.known, panel.known - 1),
        panel.known,
        window=shape.window,
        horizon=shape.horizon,
        batch_size=256,
        calendar=learned.calendar,
        every=True,
        usual_gap=learned.usual_gap,
    )
    return windows, learned


def _tell_left_out(names: list[str], fewest: int, some: bool) -> None:
    """Tell which series of a history have no forecast.

    Raises:
        DataError: no series has one.
    """
    have = "no value" if fewest == 1 else f"fewer than {fewest} rows up to the last value"
    shown = ", ".join(repr(name) for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    if not some:
        raise DataError(f"the history: every series has {have}: {shown}; expected one with at least {fewest}")
    warn(f"note: {len(names):,} series have {have} and are left out: {shown}")


def predictions(model: Forecaster, given: Read, learned: LearnedSeries) -> Iterator[Prediction]:
    """The forecasts of each series as CSV lines: a header, then one row per step.

    Raises:
        DataError: see `last_windows`.
    """
    windows, learned = last_windows(given, learned)
    panel, shape = given.panel, learned.shape
    shift, scale = learned.scales_of(panel)
    own = learned.numbers(panel.ids)
    yield Prediction(csv_line(HEADER), {})
    model.eval()
    device = model.write.weight.device
    for index in range(len(windows)):
        batch = windows.batch(0, index)
        series = batch.series.numpy()
        batch = batch.numbered(torch.from_numpy(own[series])).to(device)
        mean, bands = model.predicted(batch)
        values = mean[..., None] if bands is None else torch.cat([mean[..., None], bands], 2)
        told = learned.restored(values.cpu().double().numpy(), shift[series], scale[series])
        for row, place in enumerate(series):
            times = windows.panel.texts(int(place), panel.known[place] + np.arange(shape.horizon))
            for time, numbers in zip(times, told[row], strict=True):
                yield _said(panel.ids[place], time, numbers.tolist(), bool(own[place] == shape.series))


def _said(name: str, time: str, numbers: list[float], unknown: bool) -> Prediction:
    mean, *quantiles = numbers
    shown = [f"{value:.6g}" for value in quantiles[1:-1]] or [""] * len(TENTHS)
    record: dict[str, Any] = {"unique_id": name, "ds": time, "mean": mean}
    record |= dict(zip(as_levels(LEVELS), quantiles, strict=False))
    return Prediction(csv_line([name, time, f"{mean:.6g}", *shown]), {**record, "unknown_series": unknown})


def csv_line(fields: Sequence[str]) -> str:
    """One line of CSV, without its end."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return out.getvalue()


def check_covariates(given: Read, horizon: int, series: NDArray[np.int64]) -> None:
    """Check that the future covariates of these series are known for the whole horizon.

    Raises:
        DataError: a covariate is missing; the message names the series and the column.
    """
    panel, names = given.panel, given.roles.future
    for place in series if names else ():
        start = panel.starts[place] + panel.known[place]
        ahead = panel.future[start : min(start + horizon, panel.starts[place] + panel.rows[place])]
        if len(ahead) < horizon or np.isnan(ahead).any():
            column = names[int(np.isnan(ahead).any(0).argmax())] if len(ahead) else names[0]
            raise DataError(
                f"the history: series {panel.ids[place]!r} needs {column!r} (data.future) of the {horizon} steps after "
                "its last value: add rows with it and without a value"
            )
