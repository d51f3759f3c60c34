"""Exponential smoothing (ETS) and the Theta method from statsmodels, fitted to each series by itself."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from everstep.errors import ConfigError

Floats = NDArray[np.float64]
LONGEST = 1000
"""The most values to fit, from the end of a history."""


def check_installed() -> None:
    """Check that statsmodels is installed.

    Raises:
        ConfigError: statsmodels is missing.
    """
    try:
        import statsmodels  # noqa: F401
    except ImportError:
        raise ConfigError(
            "ETS and Theta, rivals of a model of series, need statsmodels: pip install 'everstep[forecast]'"
        ) from None


def ets(history: Floats, horizon: int, season: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each step ahead, (H,) each, by ETS(A, Ad, A), or ETS(A, Ad, N) without a season.

    Maximum likelihood fits the smoothing weights of level, damped trend and season (Hyndman et al. 2008, "Forecasting
    with exponential smoothing"). A history of fewer than 10 values or of equal values repeats its last value.

    Args:
        history: (N,) N ≥ 1 values without gaps.
        horizon: H, in steps.
        season: in steps; 1: none. The model has no season if the history has fewer than three.

    Raises:
        ConfigError: statsmodels is missing.
    """
    check_installed()
    from pandas import Series  # the prediction of statsmodels needs one
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    known = history[-LONGEST:]
    seasonal = season > 1 and len(known) >= max(3 * season, 10 + 2 * (season // 2))  # statsmodels needs as many
    if len(known) < 10 or np.ptp(known) == 0:
        return np.full(horizon, known[-1]), np.zeros(horizon)
    more = {"seasonal": "add", "seasonal_periods": season} if seasonal else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimiser that stops early still gives a usable fit
        fitted = ETSModel(Series(known), error="add", trend="add", damped_trend=True, **more).fit(
            disp=False, maxiter=200
        )
        found = fitted.get_prediction(start=len(known), end=len(known) + horizon - 1)
    variance = np.asarray(found.forecast_variance, np.float64)
    return np.asarray(found.predicted_mean, np.float64), np.sqrt(np.maximum(variance, 0.0))


def theta(history: Floats, horizon: int, season: int) -> Floats:
    """The Theta method: half the trend line plus simple exponential smoothing of deseasonalised values, (H,).

    Assimakopoulos & Nikolopoulos 2000, "The theta model: a decomposition approach to forecasting". A history of fewer
    than 10 values, of fewer than three seasons or of equal values repeats its last value.

    Args:
        history: (N,) N ≥ 1 values without gaps.
        horizon: H, in steps.
        season: in steps; 1: none.

    Raises:
        ConfigError: statsmodels is missing.
    """
    check_installed()
    from statsmodels.tsa.forecasting.theta import ThetaModel

    known = history[-LONGEST:]
    if len(known) < max(10, 3 * season) or np.ptp(known) == 0:
        return np.full(horizon, known[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = "multiplicative" if (known > 0).all() else "additive"
        model = ThetaModel(known, period=season, deseasonalize=season > 1, method=method)
        parts = model.fit().forecast_components(horizon)
    found = np.asarray(parts["trend"] / 2 + parts["ses"], np.float64)  # θ = 2: the trend line has half its slope
    factors = np.asarray(parts["seasonal"], np.float64)
    return found * factors if method == "multiplicative" else found + factors
