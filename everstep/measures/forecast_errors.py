"""How far forecasts of series are from what came, and whether their bands hold what they promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The quantiles that bands and scores are made of."""
TENTHS = LEVELS[1:-1]


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What was said of N windows of H steps.

    Attributes:
        mean: (N, H).
        quantiles: (N, H, 11) at LEVELS; None: points alone, whose every quantile is the mean.
    """

    mean: Floats
    quantiles: Floats | None = None

    @property
    def median(self) -> Floats:
        """(N, H)."""
        return self.mean if self.quantiles is None else self.quantiles[..., LEVELS.index(0.5)]


def mase_scale(history: Floats, season: int) -> float:
    """Mean |y_t − y_{t−m}| of a history, by which MASE divides; NaN where no such pair is there or all are equal.

    >>> mase_scale(np.array([1.0, 3.0, 2.0]), 1)
    1.5
    """
    gaps = np.abs(history[season:] - history[:-season]) if len(history) > season else np.zeros(0)
    found = float(np.mean(gaps[~np.isnan(gaps)])) if (~np.isnan(gaps)).any() else 0.0
    return found if found > 0 else float("nan")


def forecast_measures(
    found: Forecasts, target: Floats, series: NDArray[np.int64], scales: Floats
) -> dict[str, float | int | None]:
    """The errors of forecasts; those of missing targets do not count. e = target − forecast.

    - mse, rmse: of the mean, over all targets.
    - mae: of the median, over all targets.
    - mase: mean |e| of the median over the targets of a series, over its scale; the mean over series that have one
      (Hyndman & Koehler 2006).
    - smape: 200 |e| / (|target| + |median|), %, the mean over the targets of a series, then over series; None where one
      is not above 0, since the sum may then be near 0 (Makridakis et al. 2020, "The M4 competition").
    - wql: Σ 2 ρ_τ(e) / Σ |target|, the mean over τ = 0.1 … 0.9, with ρ_τ(e) = max(τ e, (τ − 1) e).
    - crps: the mean over targets and the levels 0.05, 0.1 … 0.9, 0.95 of 2 ρ_τ(e).
    - coverage_80, coverage_90: share of targets from q0.1 to q0.9, and from q0.05 to q0.95; None without quantiles.

    Args:
        found: of N windows.
        target: (N, H).
        series: (N,) which series each window is of.
        scales: (N,) of MASE; NaN: none.

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
    if found.quantiles is None:
        quantiles = np.repeat(found.mean[there][:, None], len(LEVELS), 1)
    else:
        quantiles = found.quantiles[there]
    levels = np.array(LEVELS)
    e = values[:, None] - quantiles
    losses = 2 * np.maximum(levels * e, (levels - 1) * e).mean(0)
    total = float(np.abs(values).mean())
    measures: dict[str, float | None] = {
        "wql": float(losses[1:-1].mean() / total) if total else None,
        "crps": float(losses.mean()),
    }
    for name, low, high in (("coverage_80", 1, -2), ("coverage_90", 0, -1)):
        inside = (quantiles[:, low] <= values) & (values <= quantiles[:, high])
        measures[name] = None if found.quantiles is None else float(inside.mean())
    return measures


def owa(ours: dict[str, Any], naive2: dict[str, Any]) -> float | None:
    """½ (sMAPE / sMAPE of Naive2 + MASE / MASE of Naive2): ratios of means, not means of ratios; None where one lacks.

    >>> owa({"smape": 9.0, "mase": 1.0}, {"smape": 18.0, "mase": 2.0})
    0.5
    """
    pairs = [(ours.get(name), naive2.get(name)) for name in ("smape", "mase")]
    if any(a is None or not b for a, b in pairs):
        return None
    return float(sum(a / b for a, b in pairs if a is not None and b)) / 2


def diebold_mariano(ours: Floats, theirs: Floats, overlap: int) -> float:
    """p that two forecasts are as good as each other, by the losses of the same windows (Diebold & Mariano 1995).

    d = ours − theirs, N numbers; the statistic d̄ / √(variance of d̄) has Harvey, Leybourne & Newbold's correction
    (1997) and is Student's t with N − 1 degrees of freedom. The variance takes in covariances of up to `overlap` − 1
    windows apart, with Bartlett's weights, since windows that overlap err together.

    >>> round(diebold_mariano(np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 5, 5]), 1), 4)
    0.0917

    Args:
        ours, theirs: (N,) losses, in the order of time.
        overlap: windows that share a target with one of them on one side, and it.
    """
    from scipy import stats

    d = ours - theirs
    number = len(d)
    overlap = max(1, min(overlap, number - 1)) if number > 1 else 1
    centred = d - d.mean()
    variance = float(centred @ centred) / number
    for lag in range(1, overlap):
        variance += 2 * (1 - lag / overlap) * float(centred[lag:] @ centred[:-lag]) / number
    if number < 2 or variance <= 0:
        return 1.0 if not d.any() else float("nan") if number < 2 else 0.0
    correction = (number + 1 - 2 * overlap + overlap * (overlap - 1) / number) / number
    statistic = float(d.mean()) / (variance / number) ** 0.5 * max(correction, 0.0) ** 0.5
    return float(2 * stats.t.sf(abs(statistic), number - 1))


def by_step(found: Forecasts, target: Floats) -> Floats:
    """Mean |target − median| of each step ahead, (H,); NaN where no target is there."""
    errors = np.abs(target - found.median)
    there = ~np.isnan(errors)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(there, errors, 0).sum(0) / there.sum(0)
    return means


def as_levels(names: Sequence[float]) -> list[str]:
    """Names of columns: q0.1."""
    return [f"q{level:g}" for level in names]
