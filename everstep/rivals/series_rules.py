"""Forecasting rules without learned parameters: naive, seasonal naive, drift, Naive2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def naive(history: Floats, horizon: int, season: int = 1) -> Floats:
    """Repeat the last value, or with a season m the last season: ŷ_{t+h} = y_{t+h−m⌈h/m⌉}, (horizon,).

    Instead of a missing value it takes that of a season before, else the last known value. A history without values
    gives 0.

    >>> naive(np.array([1.0, 2.0, 3.0]), 4, 2).tolist()
    [2.0, 3.0, 2.0, 3.0]
    """
    if len(history) < season:
        season = 1
    steps = np.arange(horizon) % season
    found = np.full(horizon, np.nan)
    for back in range(1, len(history) // season + 1):
        found = np.where(np.isnan(found), history[len(history) - back * season + steps], found)
        if not np.isnan(found).any():
            return found
    known = history[~np.isnan(history)]
    return np.where(np.isnan(found), known[-1] if len(known) else 0.0, found)


def drift(history: Floats, horizon: int) -> Floats:
    """Extend the straight line through the first and the last known value, (horizon,).

    >>> drift(np.array([1.0, 2.0, 3.0]), 2).tolist()
    [4.0, 5.0]
    """
    places = np.flatnonzero(~np.isnan(history))
    if len(places) < 2:
        return naive(history, horizon)
    slope = (history[places[-1]] - history[places[0]]) / (places[-1] - places[0])
    ahead = len(history) - 1 - places[-1] + np.arange(1, horizon + 1)
    found: Floats = history[places[-1]] + slope * ahead
    return found


def is_seasonal(values: Floats, season: int) -> bool:
    """The seasonality test of M4: |r_m| > 1.645 √((1 + 2 Σ_{k<m} r_k²) / N), with r_k the autocorrelation at lag k.

    False for fewer than 3 m values (Makridakis et al. 2020).

    >>> is_seasonal(np.tile([1.0, 2.0, 5.0], 8), 3), is_seasonal(np.arange(5.0), 3)
    (True, False)
    """
    number = len(values)
    if season < 2 or number < 3 * season:
        return False
    centred = values - values.mean()
    total = float(centred @ centred)
    if total == 0:
        return False
    r = np.array([float(centred[lag:] @ centred[:-lag]) for lag in range(1, season + 1)]) / total
    return bool(abs(r[-1]) > 1.645 * np.sqrt((1 + 2 * float(r[:-1] @ r[:-1])) / number))


def seasonal_factors(values: Floats, season: int) -> Floats:
    """Seasonal factors by classical multiplicative decomposition, (m,), with mean 1.

    A factor is the mean ratio of the values to their centred moving average over one season.

    Args:
        values: (N,) N ≥ 2 m values above 0.
        season: m, in steps; factor i belongs to values i, i + m, ….
    """
    if season % 2:
        weights = np.full(season, 1 / season)
    else:
        weights = np.concatenate([[0.5], np.ones(season - 1), [0.5]]) / season
    average = np.convolve(values, weights, mode="valid")
    lead = len(weights) // 2
    ratios = values[lead : lead + len(average)] / average
    places = (np.arange(len(ratios)) + lead) % season
    found = np.array([np.nanmean(ratios[places == place]) for place in range(season)])
    whole: Floats = found / found.mean()
    return whole


def naive2(history: Floats, horizon: int, season: int) -> Floats:
    """Naive forecast of multiplicatively deseasonalised values if `is_seasonal`, else the naive forecast, (horizon,).

    A history with a value of 0 or below also gets the naive forecast.

    Makridakis et al. 2020, "The M4 competition: 100,000 time series and 61 forecasting methods".

    >>> naive2(np.tile([1.0, 3.0], 6), 3, 2).round(6).tolist()
    [1.0, 3.0, 1.0]
    """
    known = filled(history)
    if not is_seasonal(known, season) or (known <= 0).any():
        return naive(history, horizon)
    factors = seasonal_factors(known, season)
    ahead = (len(known) + np.arange(horizon)) % season
    found: Floats = known[-1] / factors[(len(known) - 1) % season] * factors[ahead]
    return found


def filled(history: Floats) -> Floats:
    """Fill missing values by linear interpolation, and those at the ends by the nearest value.

    A history without values becomes one 0.
    """
    places = np.flatnonzero(~np.isnan(history))
    return np.interp(np.arange(len(history)), places, history[places]) if len(places) else np.zeros(1)
