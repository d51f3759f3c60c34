"""Forecasts of series that come one value at a time, with the state held by the caller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from everstep.data.calendar import calendar
from everstep.data.panel import Floats
from everstep.data.readers.time_stamps import read_stamp
from everstep.data.windows import WindowBatch
from everstep.errors import DataError
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries, usual_scale


class SeriesState(NamedTuple):
    """The last W steps of S series, in data units; NaN where a number is missing. Every leaf is (S, …).

    Save it as `safetensors.torch.save_file(state._asdict(), path)`, load it as `SeriesState(**load_file(path))`.

    Attributes:
        values: (S, W) float64.
        past, future: (S, W, P) and (S, W, F) float64, the covariates of the same steps.
        static: (S, K) float64, the covariates of each series.
        step: (S,) int64, the grid step of the next value.
        shift, scale: (S,) float64, the scaling of each series.
        series: (S,) int64, the training number of each series.
        law: (S, K), the distribution of the next value; NaN before the first.
    """

    values: Tensor
    past: Tensor
    future: Tensor
    static: Tensor
    step: Tensor
    shift: Tensor
    scale: Tensor
    series: Tensor
    law: Tensor


class SeriesForecast(NamedTuple):
    """The forecasts of S series after their newest value.

    Attributes:
        ds: the time stamps of the H steps ahead of each series.
        mean: (S, H) in data units; NaN where the window has no value.
        quantiles: (S, H, 11) at the levels 0.05, 0.1, 0.2 … 0.9, 0.95; None for a point without a validation split.
        surprise: (S,) the anomaly score of the newest value under the forecast before it, −log p with p its two-sided
            tail probability; NaN if the value is missing or no value was known before it.
    """

    ds: list[list[str]]
    mean: Floats
    quantiles: Floats | None
    surprise: Floats


class SeriesStream:
    """Forecast after each value; the result equals that of `predict` on all values so far.

    The network reads a whole window after each value, since it normalises the window by its own level and spread. A
    step costs as much as one window of `predict`, and memory does not grow.

    Args:
        model: the network.
        learned: the time grid, the sizes and the scaling of training.

    Known limits: an unknown series is scaled by the median scaling of training, unless `start` gets another; `predict`
    scales it by its own history. Steps that are left out have to be passed as missing values.
    """

    def __init__(self, model: Forecaster, learned: LearnedSeries):
        self._model, self._learned = model.eval(), learned

    def start(
        self,
        series: str | int | Iterable[str | int],
        ds: str | int | None = None,
        scaling: tuple[float, float] | None = None,
        static: Any = None,
    ) -> SeriesState:
        """The state of one or more series before their first value.

        Args:
            series: the name or the names; names that training did not have are allowed.
            ds: the time stamp of the first value, the same for all; None: rows are counted from 1.
            scaling: (shift, scale) of series that training did not have; None: the medians of training.
            static: the covariates of each series (data.static), (K,) or (S, K).

        Raises:
            DataError: the time stamp is missing, cannot be read, or is not on the grid of training; static covariates
                are missing; the scaling is no shift and scale above 0.
        """
        learned, shape = self._learned, self._learned.shape
        if learned.frequency.irregular:
            raise DataError("stream: expected a model of a regular time grid; this one has irregular time stamps; use "
                            "predict on the history")  # fmt: skip
        given = [series] if isinstance(series, str) or not isinstance(series, Iterable) else series
        names = tuple(map(str, given))  # as tables are read, whose numbers are names, too
        if not names:
            raise DataError("stream: expected the name of at least one series; got none")
        usual = usual_scale(list(learned.scales.values())) if scaling is None else _scaling(scaling)
        shift, scale = np.array([learned.scales.get(name, usual) for name in names], np.float64).T
        rows, future = len(names), len(learned.roles.future)
        own = _numbers("static, of data.static", static, (rows, len(learned.roles.static)), learned.roles.static)
        empty = torch.full((rows, shape.window), torch.nan, dtype=torch.float64)
        return SeriesState(
            empty,
            empty[..., None].repeat(1, 1, shape.past),
            empty[..., None].repeat(1, 1, future),
            torch.from_numpy(own),
            torch.full((rows,), self._place(ds)),
            torch.from_numpy(shift.copy()),
            torch.from_numpy(scale.copy()),
            torch.from_numpy(learned.numbers(names)),
            torch.full((rows, self._model.law_size), torch.nan),
        )

    def _place(self, ds: str | int | None) -> int:
        """The grid step of a time stamp."""
        learned = self._learned
        if learned.counted:
            if ds is not None:
                raise DataError(f"stream: expected no ds, since the training data has no time stamps; got {ds!r}")
            return 1
        grid = learned.frequency
        if ds is None:
            raise DataError(f"stream: expected ds, the time stamp of the first value (one {grid.described})")
        try:
            whole = grid.unit == "step"
            stamp, utc = (int(ds), False) if whole else read_stamp(str(ds), learned.roles.time_format)
        except (ValueError, OverflowError):
            raise DataError(f"stream: expected ds as in the training data; got {ds!r}") from None
        stamps = np.array([stamp])
        if not grid.on_grid(stamps).all() or utc != grid.utc:
            raise DataError(f"stream: expected ds on the grid of training (one {grid.described}); got {ds!r}")
        return int(grid.places(stamps)[0])

    def __call__(
        self, value: Any, state: SeriesState, *, past: Any = None, future: Any = None
    ) -> tuple[SeriesForecast, SeriesState]:
        """Take the next value of each series; the forecasts from then on, and the new state.

        Args:
            value: a number, or one for each of S series; None or NaN: missing.
            state: what `start` or the last call returned; it is left as it is.
            past: the covariates known up to the present (data.past), (P,) or (S, P).
            future: the covariates known ahead of time (data.future) of this step and of the H after it, (H + 1, F) or
                (S, H + 1, F).

        Raises:
            DataError: numbers of another shape, infinities, covariates known ahead that are missing, or a value that
                the scaling or the head does not allow.
        """
        learned, shape, rows = self._learned, self._learned.shape, len(state.values)
        ahead = shape.horizon + 1
        newest = _numbers("value", value, (rows,), one=True)
        self._check(newest)
        beside = _numbers("past, of data.past", past, (rows, shape.past), learned.roles.past)
        coming = _numbers("future, of data.future", future, (rows, ahead, len(learned.roles.future)),
                          learned.roles.future)  # fmt: skip
        if np.isnan(coming).any():
            raise DataError(f"stream: expected future (data.future) of this step and the {shape.horizon} after it; "
                            "some are missing")  # fmt: skip
        known = state._replace(
            values=_pushed(state.values, newest[:, None]),
            past=_pushed(state.past, beside[:, None]),
            future=_pushed(state.future, coming[:, :1]),
            step=state.step + 1,
        )
        mean, quantiles, law = self._model.laws(self._batch(known, coming[:, 1:]))
        empty = known.values.isnan().all(1)
        surprise = self._surprise(newest, state)
        law = torch.where(empty[:, None], torch.nan, law[:, 0].cpu())  # a state lies on the CPU
        return (
            SeriesForecast(
                [learned.frequency.texts(int(step) + np.arange(shape.horizon)) for step in known.step],
                self._restored(mean, empty, state),
                None if quantiles is None else self._restored(quantiles, empty, state),
                surprise,
            ),
            known._replace(law=law),
        )

    def _check(self, values: Floats) -> None:
        if self._learned.scaling == "log" and (values <= 0).any():
            raise DataError(f"stream: expected values above 0 beside data.scaling=log; got {values.min():g}")
        if self._model.head.in_data_units and ((values < 0) | (values % 1 > 0)).any():
            raise DataError(f"stream: expected counts 0, 1, 2, … beside model.head; got {values.tolist()}")

    def _surprise(self, newest: Floats, state: SeriesState) -> Floats:
        scaled = self._learned.scaled(newest, state.shift.numpy(), state.scale.numpy())
        device = self._model.write.weight.device
        found = self._model.surprise(state.law.to(device), torch.from_numpy(scaled.astype(np.float32)).to(device))
        return np.where(state.law.isnan().any(1).numpy() | np.isnan(newest), np.nan, found.cpu().numpy())

    def _batch(self, known: SeriesState, coming: Floats) -> WindowBatch:
        """The windows as `predict` would make them."""
        learned, shape, rows = self._learned, self._learned.shape, len(known.values)
        values = learned.scaled(known.values.numpy(), known.shift.numpy()[:, None], known.scale.numpy()[:, None])
        whole = np.concatenate([known.future.numpy(), coming], 1)
        parts = learned.standardised(known.past.numpy(), whole, known.static.numpy())
        past, future, static = (np.nan_to_num(part) for part in parts)
        future = np.concatenate([future, np.broadcast_to(static[:, None], (*whole.shape[:2], static.shape[1]))], -1)
        if learned.calendar:
            steps = known.step.numpy()[:, None] + np.arange(-shape.window, shape.horizon)
            dated = calendar(learned.frequency, steps.ravel()).reshape(rows, shape.window + shape.horizon, -1)
            future = np.concatenate([future, dated], -1)
        read, before, ahead = (torch.from_numpy(part.astype(np.float32)) for part in (values, past, future))
        target = torch.full((rows, shape.horizon), torch.nan)
        return WindowBatch(read, before, ahead, target, known.series, 0).to(self._model.write.weight.device)

    def _restored(self, found: Tensor, empty: Tensor, state: SeriesState) -> Floats:
        values = self._learned.restored(found.cpu().double().numpy(), state.shift.numpy(), state.scale.numpy())
        values[empty.numpy()] = np.nan
        return values


def _scaling(given: Any) -> tuple[float, float]:
    shift, scale = _numbers("scaling, a shift and a scale,", given, (2,), one=True).tolist()
    if np.isnan(shift) or not scale > 0:
        raise DataError(f"stream: expected a scale above 0 as scaling, (shift, scale); got {given!r}")
    return shift, scale


def _pushed(held: Tensor, newest: Floats) -> Tensor:
    """The steps with one more at the end, without the first, (S, W, …)."""
    return torch.cat([held[:, 1:], torch.from_numpy(newest)], 1)


def _numbers(what: str, given: Any, shape: tuple[int, ...], names: tuple[str, ...] = (), one: bool = False) -> Floats:
    """The given numbers as float64 of this shape; the first dimension may be left out, and all if `one`."""
    if 0 in shape and given is None:
        return np.zeros(shape)
    columns = f" ({', '.join(names)})" if names else ""
    try:
        found = np.asarray(np.nan if given is None and one else given, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"stream: expected numbers as {what}{columns}; got {given!r}") from None
    allowed = [shape, shape[1:]] if shape[0] == 1 or not one else [shape]
    if found.shape not in allowed:
        raise DataError(f"stream: expected {what}{columns} of shape {shape}; got {found.shape}")
    if np.isinf(found).any():
        raise DataError(f"stream: expected finite numbers as {what}; got an infinity")
    return np.broadcast_to(found, shape).astype(np.float64)
