"""Rival forecasts on the same windows as a run's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from everstep.data.panel import Floats
from everstep.data.windows import WindowBatch, Windows
from everstep.measures.forecast_errors import LEVELS, Forecasts, diebold_mariano, forecast_measures, owa
from everstep.networks.learned_series import LearnedSeries
from everstep.networks.window_values import normalised
from everstep.rivals.lag_ridge import LagRidge, carried
from everstep.rivals.series_rules import drift, filled, naive, naive2
from everstep.rivals.smoothing import ets, theta
from everstep.runs.forecasts import InUnits, in_units, targets_of
from everstep.runs.series_data import SeriesData

FITTED = 30_000
"""The approximate largest number of training windows of the ridge regression."""
SMOOTHED = 1000
"""The largest number of windows for ETS and Theta, which fit each window by itself in up to a second."""
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class SeriesRivals:
    """Naive rules, ridge regression on lags, ETS and Theta.

    Args:
        data: the series and their splits.
        learned: the sizes and the scaling fitted to the training split.
    """

    def __init__(self, data: SeriesData, learned: LearnedSeries):
        self.data, self.learned = data, learned
        self._found: dict[tuple[str, bool], tuple[Windows, dict[str, Forecasts]]] = {}

    def figures(self, split: str, quick: bool = True) -> list[dict[str, Any]]:
        """The name and the errors of each rival on a split; without `quick` also of ETS and Theta."""
        windows, found = self._forecasts(split, quick)
        came = targets_of(_targets(windows), windows, self.data, self.learned, split)
        rows = [
            {"name": name, **forecast_measures(of, came.target, came.series, came.scales)} for name, of in found.items()
        ]
        base = next(row for row in rows if row["name"] == "Naive2") if came.once else {}
        for row in rows:
            row.pop("count")
            if came.once:
                row["owa"] = owa(row, base)
        return rows

    def beside(self, split: str, ours: Forecasts) -> list[dict[str, Any]]:
        """`figures` with `p_equal`, the p-value of equal absolute errors, see `diebold_mariano`.

        Args:
            split: the split.
            ours: the forecasts to compare with, in the units of the errors.
        """
        windows, found = self._forecasts(split, True)
        came = targets_of(_targets(windows), windows, self.data, self.learned, split)
        p_values = self.compared(ours, found, windows, came)
        return [{**row, "p_equal": p_values[row["name"]]} for row in self.figures(split)]

    def compared(
        self, ours: Forecasts, found: dict[str, Forecasts], windows: Windows, came: InUnits
    ) -> dict[str, float | None]:
        """The p-value of equal absolute errors, over the scale of MASE, of `ours` and of each rival; None: no test.

        If each series has one window, the windows count as independent; else those of the same time as dependent.
        """
        overlap = 1 if came.once else self.learned.shape.horizon
        times = None if came.once else windows.panel.when(windows.series, windows.rows)
        losses = {name: _losses(of, came.target, came.scales) for name, of in {"": ours, **found}.items()}
        kept = ~np.isnan(losses[""])
        own = None if times is None else times[kept]
        return {name: diebold_mariano(losses[""][kept], losses[name][kept], overlap, own) for name in found}

    def found(self, split: str) -> dict[str, Forecasts]:
        """The forecasts of each rival, in the units of the errors."""
        return self._forecasts(split, True)[1]

    def _forecasts(self, split: str, quick: bool) -> tuple[Windows, dict[str, Forecasts]]:
        """The windows of a split, and the forecasts of each rival in the units of the errors."""
        if (split, quick) not in self._found:
            windows = self.data.windows(split, self.learned, 1024)
            self._found[split, quick] = (windows, self.of_windows(windows, quick))
        return self._found[split, quick]

    def of_windows(self, windows: Windows, quick: bool) -> dict[str, Forecasts]:
        """The forecasts of each rival on windows, in the units of the errors; without `quick` also ETS and Theta."""
        season = self.learned.season
        found = {"naive": self._ruled(windows, lambda history, horizon: naive(history, horizon), 1)}
        if season > 1:
            found["seasonal naive"] = self._ruled(windows, lambda h, horizon: naive(h, horizon, season), season)
        found["drift"] = self._ruled(windows, drift)
        if len(np.unique(windows.series)) == windows.number:
            found["Naive2"] = self._ruled(windows, lambda h, horizon: naive2(h, horizon, season))
        found["ridge on lags"] = self._ridge(windows)
        if not quick and windows.number <= SMOOTHED:
            found |= self._smoothed(windows)
        return found

    def _ruled(self, windows: Windows, rule: Callable[[Floats, int], Floats], season: int = 0) -> Forecasts:
        """Apply a rule to the history before each window, in data units. A `season` adds quantiles of normal errors.

        The standard deviation of a naive forecast with season m at step h is σ √⌈h / m⌉, where σ is the root mean
        square of the seasonal differences.
        """
        panel, horizon = self.data.panel, windows.horizon
        rows = np.stack(
            [
                rule(panel.values(int(series))[:row], horizon)
                for series, row in zip(windows.series, windows.rows, strict=True)
            ]
        )
        mean = self._in_units(rows, windows)
        if not season:
            return Forecasts(mean)
        from scipy.special import ndtri

        scaled = self.learned.normalised(panel) if self.data.section.figures == "scaled" else panel
        first = dict(zip(windows.series[::-1], windows.rows[::-1], strict=True))
        deviations = {series: _deviation(scaled.values(int(series))[:row], season) for series, row in first.items()}
        sigma = np.array([deviations[series] for series in windows.series])
        spread = sigma[:, None] * np.sqrt(np.arange(horizon) // season + 1)
        normal = ndtri(np.array(LEVELS)).astype(np.float32)
        return Forecasts(mean, mean.astype(np.float32)[..., None] + spread.astype(np.float32)[..., None] * normal)

    def _smoothed(self, windows: Windows) -> dict[str, Forecasts]:
        """ETS, with quantiles of normal errors, and Theta, fitted to the history before each window."""
        from scipy.special import ndtri

        panel, season = self.data.panel, self.learned.season
        means, deviations, thetas = [], [], []
        for series, row in zip(windows.series, windows.rows, strict=True):
            history = filled(panel.values(int(series))[:row])
            mean, deviation = ets(history, windows.horizon, season)
            means.append(mean)
            deviations.append(deviation)
            thetas.append(theta(history, windows.horizon, season))
        bands = np.stack(means)[..., None] + np.stack(deviations)[..., None] * ndtri(np.array(LEVELS))
        return {
            "ETS": Forecasts(self._in_units(np.stack(means), windows), self._in_units(bands, windows)),
            "Theta": Forecasts(self._in_units(np.stack(thetas), windows)),
        }

    def _in_units(self, values: Floats, windows: Windows) -> Floats:
        """Convert values (N, …) in data units to the units of the errors."""
        if self.data.section.figures == "values":
            return values
        shift, scale = self.learned.scales_of(self.data.panel)
        taken = np.log(np.maximum(values, 1e-300)) if self.learned.scaling == "log" else values
        extent = (slice(None), *(None,) * (values.ndim - 1))
        found: Floats = (taken - shift[windows.series][extent]) / scale[windows.series][extent]
        return found

    def _ridge(self, windows: Windows) -> Forecasts:
        """One ridge regression for all series, on differences from the last value; "valid" selects λ."""
        fitted = LagRidge()
        train = self.data.windows("train", self.learned, 1024, most=FITTED)
        for index in range(len(train)):
            x, y, _, _ = self._lags(train.batch(0, index))
            kept = ~np.isnan(y).all(1)
            fitted.add(x[kept], carried(y[kept]))
        choices = [fitted.solve(penalty) for penalty in PENALTIES]
        best = choices[2]
        if "valid" in self.data.splits():
            valid = self.data.windows("valid", self.learned, 1024, most=FITTED // 4)
            errors = np.zeros(len(choices))
            for index in range(len(valid)):
                x, y, _, _ = self._lags(valid.batch(0, index))
                errors += [float(np.nansum((y - x @ choice.T) ** 2)) for choice in choices]
            best = choices[int(errors.argmin())]
        found = []
        for index in range(len(windows)):
            x, _, level, spread = self._lags(windows.batch(0, index))
            found.append(x @ best.T * spread + level)
        return Forecasts(in_units(np.concatenate(found), windows, self.data, self.learned))

    def _lags(self, batch: WindowBatch) -> tuple[Floats, Floats, Floats, Floats]:
        spread = self.data.model.spread
        known = normalised(batch.values.double(), "last", spread)
        parts = (known.values, known.of_targets(batch.target.double()), known.level, known.spread)
        x, y, level, size = (part.numpy() for part in parts)
        return x, y, level, size


def _targets(windows: Windows) -> Floats:
    return torch.cat([windows.batch(0, index).target for index in range(len(windows))]).double().numpy()


def _deviation(history: Floats, season: int) -> float:
    gaps = history[season:] - history[:-season] if len(history) > season else np.zeros(1)
    return float(np.sqrt(np.nanmean(gaps**2))) if (~np.isnan(gaps)).any() else 0.0


def _losses(found: Forecasts, target: Floats, scales: Floats) -> Floats:
    """Mean |e| of each window over its scale, (N,)."""
    errors = np.abs(target - found.median)
    there = ~np.isnan(errors)
    total = np.where(there, errors, 0).sum(1) / np.maximum(there.sum(1), 1)
    return np.where(there.any(1), total / np.where(np.isnan(scales), 1.0, scales), np.nan)
