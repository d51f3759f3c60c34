"""Forecasts of series that come one value at a time, with the state held by the caller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.calendar import calendar
from everstep.data.panel import Floats, Ints, usual_step
from everstep.data.readers.static_columns import static_values
from everstep.data.readers.time_stamps import read_stamp
from everstep.data.windows import WindowBatch, passed
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
        step: (S,) int64, the grid step of the next value; of irregular series the number of rows so far.
        shift, scale: (S,) float64, the scaling of each series.
        series: (S,) int64, the training number of each series.
        law: (S, K), the distribution of the next value; NaN before the first, and where its time decides it.
        times: (S, W + 1) int64, the time stamps of irregular series, of the steps and the one before; else (S, 0).
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
    times: Tensor


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
    step costs as much as one window of `predict`, of irregular series as two, and memory does not grow.

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
            ds: the time stamp of the first value, the same for all; None: rows are counted from 1, or irregular.
            scaling: (shift, scale) of series that training did not have; None: the medians of training.
            static: the covariates of each series (data.static), numbers and texts, (K,) or (S, K).

        Raises:
            DataError: the time stamp is missing, cannot be read, or is not on the grid of training; static covariates
                are missing; the scaling is no shift and scale above 0.
        """
        learned, shape = self._learned, self._learned.shape
        given = [series] if isinstance(series, str) or not isinstance(series, Iterable) else series
        names = tuple(map(str, given))  # as tables are read, whose numbers are names, too
        if not names:
            raise DataError("stream: expected the name of at least one series; got none")
        usual = usual_scale(list(learned.scales.values())) if scaling is None else _scaling(scaling)
        shift, scale = np.array([learned.scales.get(name, usual) for name in names], np.float64).T
        rows, future = len(names), len(learned.roles.future)
        own = static_values(static, learned.roles.static, learned.roles.categories, rows)
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
            torch.zeros((rows, (shape.window + 1) * learned.frequency.irregular), dtype=torch.int64),
        )

    def _place(self, ds: str | int | None) -> int:
        """The grid step of a time stamp."""
        learned = self._learned
        if learned.frequency.irregular:
            if ds is not None:
                raise DataError(f"stream: expected ds beside each value, since the series is irregular; got {ds!r} at "
                                "its start")  # fmt: skip
            return 0
        if learned.counted:
            if ds is not None:
                raise DataError(f"stream: expected no ds, since the training data has no time stamps; got {ds!r}")
            return 1
        grid = learned.frequency
        if ds is None:
            raise DataError(f"stream: expected ds, the time stamp of the first value (one {grid.described})")
        stamp, utc = self._stamp(ds)
        stamps = np.array([stamp])
        if not grid.on_grid(stamps).all() or utc != grid.utc:
            raise DataError(f"stream: expected ds on the grid of training (one {grid.described}); got {ds!r}")
        return int(grid.places(stamps)[0])

    def _stamp(self, ds: Any) -> tuple[int, bool]:
        """A time stamp as a number, and whether it has an offset from UTC."""
        try:
            if self._learned.frequency.unit == "step":
                return int(ds), False
            return read_stamp(str(ds), self._learned.roles.time_format)
        except (ValueError, TypeError, OverflowError):
            raise DataError(f"stream: expected ds as in the training data; got {ds!r}") from None

    def __call__(
        self,
        value: Any,
        state: SeriesState,
        *,
        ds: Any = None,
        ahead: Any = None,
        past: Any = None,
        future: Any = None,
    ) -> tuple[SeriesForecast, SeriesState]:
        """Take the next value of each series; the forecasts from then on, and the new state.

        Args:
            value: a number, or one for each of S series; None or NaN: missing.
            state: what `start` or the last call returned; it is left as it is.
            ds: of irregular series, the time stamp of the value, one for all or one for each series.
            ahead: of irregular series, up to H times to forecast, (n,) or (S, n); further ones follow at the median
                distance of training. On a grid both are None.
            past: the covariates known up to the present (data.past), (P,) or (S, P).
            future: the covariates known ahead of time (data.future) of this step and of the H after it, (H + 1, F) or
                (S, H + 1, F).

        Raises:
            DataError: numbers of another shape, infinities, covariates known ahead that are missing, a value that the
                scaling or the head does not allow, or times that are missing or do not rise.
        """
        learned, shape, rows = self._learned, self._learned.shape, len(state.values)
        now, later = self._times(ds, ahead, state)
        newest = _numbers("value", value, (rows,), one=True)
        self._check(newest)
        beside = _numbers("past, of data.past", past, (rows, shape.past), learned.roles.past)
        coming = _numbers("future, of data.future", future, (rows, shape.horizon + 1, len(learned.roles.future)),
                          learned.roles.future)  # fmt: skip
        if np.isnan(coming).any():
            raise DataError(f"stream: expected future (data.future) of this step and the {shape.horizon} after it; "
                            "some are missing")  # fmt: skip
        known = state._replace(
            values=_pushed(state.values, newest[:, None]),
            past=_pushed(state.past, beside[:, None]),
            future=_pushed(state.future, coming[:, :1]),
            step=state.step + 1,
            times=torch.where(state.step[:, None] > 0, _pushed(state.times, now), torch.from_numpy(now)),
        )
        mean, quantiles, law = self._model.laws(self._batch(known, coming[:, 1:], later))
        empty = known.values.isnan().all(1)
        surprise = self._surprise(newest, state, coming, np.concatenate([now, later], 1))
        places = known.step[:, None].numpy() + np.arange(shape.horizon)
        untold = torch.ones_like(empty) if learned.frequency.irregular else empty
        return (
            SeriesForecast(
                [learned.frequency.texts(own) for own in (later if learned.frequency.irregular else places)],
                self._restored(mean, empty, state),
                None if quantiles is None else self._restored(quantiles, empty, state),
                surprise,
            ),
            known._replace(law=torch.where(untold[:, None], torch.nan, law[:, 0].cpu())),  # a state lies on the CPU
        )

    def _times(self, ds: Any, ahead: Any, state: SeriesState) -> tuple[Ints, Ints]:
        """The time stamp of the value, (S, 1), and of the steps ahead, (S, H), of irregular series; else (S, 0)."""
        learned, rows, horizon = self._learned, len(state.values), self._learned.shape.horizon
        none = np.zeros((rows, 0), np.int64)
        if not learned.frequency.irregular:
            if ds is not None or ahead is not None:
                raise DataError("stream: expected no ds and no ahead beside a value, since the model has a time grid")
            return none, none
        if ds is None:
            raise DataError("stream: expected ds, the time stamp of the value, since the series is irregular")
        now = self._stamps("ds", ds, rows)
        given = none if ahead is None else self._stamps("ahead", ahead, rows)
        before = np.where(state.step[:, None] > 0, state.times[:, -1:], now - 1)
        if (np.diff(np.concatenate([before, now, given], 1)) <= 0).any() or given.shape[1] > horizon:
            raise DataError(f"stream: expected a ds after that of the value before, and up to {horizon} rising times "
                            f"ahead of it; got {ds!r} and {ahead!r}")  # fmt: skip
        known = np.concatenate([now, given], 1)
        step = usual_step(learned.frequency, learned.usual_gap)
        more = known[:, -1:] + step * np.arange(1, horizon - given.shape[1] + 1)
        return now, np.concatenate([given, more], 1)

    def _stamps(self, what: str, given: Any, rows: int) -> Ints:
        """Time stamps as numbers, (S, n), of one or n for all series, or one or n for each."""
        utc, held = self._learned.frequency.utc, np.array(given, object)
        found = [self._stamp(one) for one in held.ravel()]
        if wrong := [one for one, (_, own) in zip(held.ravel(), found, strict=True) if own != utc]:
            offset = "an offset from UTC, as training has" if utc else "no offset from UTC, as in training"
            raise DataError(f"stream: expected {what} with {offset}; got {wrong[0]!r}")
        stamps: Ints = np.array([stamp for stamp, _ in found], np.int64).reshape(held.shape)
        if what == "ds":
            stamps = stamps[..., None]
        if stamps.ndim not in (1, 2) or (stamps.ndim == 2 and len(stamps) != rows):
            raise DataError(f"stream: expected {what} for all series or for each of {rows}; got {given!r}")
        return np.broadcast_to(stamps, (rows, stamps.shape[-1])).copy()

    def _check(self, values: Floats) -> None:
        if self._learned.scaling == "log" and (values <= 0).any():
            raise DataError(f"stream: expected values above 0 beside data.scaling=log; got {values.min():g}")
        if self._model.head.in_data_units and ((values < 0) | (values % 1 > 0)).any():
            raise DataError(f"stream: expected counts 0, 1, 2, … beside model.head; got {values.tolist()}")

    def _surprise(self, newest: Floats, state: SeriesState, coming: Floats, times: Ints) -> Floats:
        """The scores of the newest values; of irregular series under the forecast for their times, (S, 1 + H)."""
        law, known = state.law, ~state.values.isnan().all(1).numpy() & ~np.isnan(newest)
        if self._learned.frequency.irregular and known.any():
            law = self._model.laws(self._batch(state, coming[:, :-1], times[:, :-1]))[2][:, 0].cpu()
        scaled = self._learned.scaled(newest, state.shift.numpy(), state.scale.numpy())
        device = self._model.write.weight.device
        found = self._model.surprise(law.to(device), torch.from_numpy(scaled.astype(np.float32)).to(device))
        return np.where(law.isnan().any(1).numpy() | ~known, np.nan, found.cpu().numpy())

    def _batch(self, known: SeriesState, coming: Floats, later: Ints) -> WindowBatch:
        """The windows as `predict` would make them; `later` are the times ahead of irregular series, (S, H)."""
        learned, shape, rows = self._learned, self._learned.shape, len(known.values)
        values = learned.scaled(known.values.numpy(), known.shift.numpy()[:, None], known.scale.numpy()[:, None])
        whole = np.concatenate([known.future.numpy(), coming], 1)
        parts = learned.standardised(known.past.numpy(), whole, known.static.numpy())
        past, future, static = (np.nan_to_num(part) for part in parts)
        future = np.concatenate([future, np.broadcast_to(static[:, None], (*whole.shape[:2], static.shape[1]))], -1)
        steps = known.step.numpy()[:, None] + np.arange(-shape.window, shape.horizon)
        if learned.frequency.irregular:
            times = np.concatenate([known.times.numpy(), later], 1)
            future, steps = np.concatenate([future, passed(times, shape.window, learned.usual_gap)], -1), times[:, 1:]
        if learned.calendar:
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


def _pushed(held: Tensor, newest: NDArray[Any]) -> Tensor:
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
