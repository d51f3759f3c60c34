"""Errors of forecasts, coverage of their quantiles, and a test of equal accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The levels of the quantiles that forecasts have."""
TENTHS = LEVELS[1:-1]


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Forecasts of N windows of H steps.

    Attributes:
        mean: (N, H).
        quantiles: (N, H, 11) at LEVELS, usually float32, to save memory; None: point forecasts, whose every quantile
            is the mean.
    """

    mean: Floats
    quantiles: Reals | None = None

    @property
    def median(self) -> Floats:
        """The median, (N, H)."""
        return self.mean if self.quantiles is None else self.quantiles[..., LEVELS.index(0.5)].astype(np.float64)


def mase_scale(history: Floats, season: int) -> float:
    """The scale of MASE: mean |y_t − y_{t−m}| of a history with season m; NaN without pairs or if all are equal.

    >>> mase_scale(np.array([1.0, 3.0, 2.0]), 1)
    1.5
    """
    gaps = np.abs(history[season:] - history[:-season]) if len(history) > season else np.zeros(0)
    found = float(np.mean(gaps[~np.isnan(gaps)])) if (~np.isnan(gaps)).any() else 0.0
    return found if found > 0 else float("nan")


def forecast_measures(
    found: Forecasts, target: Floats, series: NDArray[np.int64], scales: Floats
) -> dict[str, float | int | None]:
    """The errors of forecasts, e = target − forecast. Missing targets do not count.

    - mse, rmse: of the mean, over all targets.
    - mae: of the median, over all targets.
    - mase: mean |e| of the median over the targets of a series, over its scale; the mean over series that have one
      (Hyndman & Koehler 2006).
    - smape: 200 |e| / (|target| + |median|), %, the mean over the targets of a series, then over series; None if a
      target is not above 0, since the sum may then be near 0 (Makridakis et al. 2020, "The M4 competition").
    - wql: Σ 2 ρ_τ(e) / Σ |target|, the mean over τ = 0.1 … 0.9, with ρ_τ(e) = max(τ e, (τ − 1) e).
    - crps: the mean over targets and the levels 0.05, 0.1 … 0.9, 0.95 of 2 ρ_τ(e).
    - coverage_80, coverage_90: share of targets from q0.1 to q0.9, and from q0.05 to q0.95; None without quantiles.

    Args:
        found: the forecasts of N windows.
        target: (N, H) the targets; NaN where they are missing.
        series: (N,) the series number of each window.
        scales: (N,) the scale of MASE of its series; NaN: none.

    Example:
        >>> target = np.array([[1.0, 2.0], [4.0, np.nan]])
        >>> found = forecast_measures(Forecasts(np.full((2, 2), 2.0)), target, np.array([0, 1]), np.array([0.5, 2.0]))
        >>> found["mse"], found["mae"], found["mase"], found["count"]
        (1.6666666666666667, 1.0, 1.0, 3)
    """
    there = ~np.isnan(target)
    e, error = (target - found.median)[there], (target - found.mean)[there]
    rows = np.repeat(np.arange(len(target)), there.sum(1))
    size = int(series.max(initial=-1)) + 1
    per_series = np.bincount(series[rows], minlength=size)
    full = per_series > 0

    def by_series(values: Floats) -> Floats:
        return np.bincount(series[rows], values, minlength=size)[full] / per_series[full]

    scale = np.full(size, np.nan)
    scale[series] = scales
    relative = by_series(np.abs(e)) / scale[full]
    smape = None
    if (target[there] > 0).all():
        total = np.abs(target[there]) + np.abs(found.median[there])
        smape = float(by_series(200 * np.abs(e) / total).mean())
    mse = float(np.mean(error**2))
    measures: dict[str, float | int | None] = {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(np.mean(np.abs(e))),
        "mase": float(np.nanmean(relative)) if (~np.isnan(relative)).any() else None,
        "smape": smape,
        "count": int(there.sum()),
    }
    return {**measures, **_bands(found, target, there)}


def _bands(found: Forecasts, target: Floats, there: NDArray[np.bool_]) -> dict[str, float | None]:
    values = target[there]
    losses = np.zeros(len(LEVELS))
    below = np.zeros((len(LEVELS), len(values)), np.bool_)
    for place, level in enumerate(LEVELS):  # one at a time, so that memory is that of one
        quantile = found.mean[there] if found.quantiles is None else found.quantiles[..., place][there]
        e = values - quantile
        losses[place] = 2 * np.maximum(level * e, (level - 1) * e).mean()
        rounded = values.astype(quantile.dtype)  # so that equal numbers stay equal in single precision
        below[place] = quantile <= rounded if level < 0.5 else rounded <= quantile
    total = float(np.abs(values).mean())
    measures: dict[str, float | None] = {
        "wql": float(losses[1:-1].mean() / total) if total else None,
        "crps": float(losses.mean()),
    }
    for name, low, high in (("coverage_80", 1, -2), ("coverage_90", 0, -1)):
        inside = below[low] & below[high]
        measures[name] = None if found.quantiles is None else float(inside.mean())
    return measures


def owa(ours: dict[str, Any], naive2: dict[str, Any]) -> float | None:
    """½ (sMAPE / sMAPE of Naive2 + MASE / MASE of Naive2), the ratios of means (Makridakis et al. 2020).

    None if a figure is missing or a figure of Naive2 is 0.

    >>> owa({"smape": 9.0, "mase": 1.0}, {"smape": 18.0, "mase": 2.0})
    0.5
    """
    pairs = [(ours.get(name), naive2.get(name)) for name in ("smape", "mase")]
    if any(a is None or not b for a, b in pairs):
        return None
    return float(sum(a / b for a, b in pairs if a is not None and b)) / 2


def diebold_mariano(ours: Floats, theirs: Floats, overlap: int, times: NDArray[np.int64] | None = None) -> float | None:
    """The two-sided p-value of equal accuracy, from the losses on the same windows (Diebold & Mariano 1995).

    d = ours − theirs has N numbers at T times. The statistic d̄ / √(variance of d̄), with the correction of Harvey,
    Leybourne & Newbold (1997), is compared with Student's t with T − 1 degrees of freedom. Let s_t be the sum of d − d̄
    at time t. The variance of d̄ is (Σ_t s_t² + 2 Σ_l w_l Σ_t s_t s_{t−l}) / N² over the lags l < `overlap`, with
    Bartlett weights w_l = 1 − l / `overlap`, since the errors of overlapping windows are correlated. Several series may
    so depend on each other at the same time (Driscoll & Kraay 1998); of one series it is the usual variance. The
    correction counts the consecutive windows that share a target: 1 where they are at least `overlap` apart.

    >>> round(diebold_mariano(np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 5, 5]), 1), 4)
    0.0917

    Args:
        ours, theirs: (N,) losses.
        overlap: the length of a window in units of time; windows less apart share a target. 1: no two windows overlap.
        times: (N,) the time of each window; None: one window at each time, in order.

    Returns:
        p, from 0 to 1; None where there are fewer than two times, since the variance is unknown then.
    """
    from scipy import stats

    d = ours - theirs
    at, own = np.unique(np.arange(len(d)) if times is None else times, return_inverse=True)
    number = len(at)
    if number < 2:
        return None
    overlap = max(1, min(overlap, int(at[-1] - at[0])))
    sums = np.bincount(own, d - d.mean())
    variance = float(sums @ sums)
    for lag in range(1, overlap):
        later = np.minimum(np.searchsorted(at, at + lag), number - 1)
        pairs = at[later] == at + lag
        variance += 2 * (1 - lag / overlap) * float(sums[later[pairs]] @ sums[pairs])
    if variance <= 0:
        return 0.0 if d.any() else 1.0
    shared = int((np.searchsorted(at, at + overlap) - np.arange(number)).max())
    correction = (number + 1 - 2 * shared + shared * (shared - 1) / number) / number
    statistic = float(d.mean()) * len(d) / variance**0.5 * max(correction, 0.0) ** 0.5
    return float(2 * stats.t.sf(abs(statistic), number - 1))


def by_step(found: Forecasts, target: Floats) -> Floats:
    """Mean |target − median| of each step ahead, (H,); NaN for steps without a target."""
    errors = np.abs(target - found.median)
    there = ~np.isnan(errors)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(there, errors, 0).sum(0) / there.sum(0)
    return means


def as_levels(names: Sequence[float]) -> list[str]:
    """Column names of quantile levels, such as q0.1."""
    return [f"q{level:g}" for level in names]
