"""Exponential smoothing and the Theta method, by statsmodels, fitted to each series by itself."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from everstep.errors import ConfigError

Floats = NDArray[np.float64]
LONGEST = 1000
"""Values at the end of a history that are fitted to."""


def check_installed() -> None:
    """Refuse to go on without statsmodels.

    Raises:
        ConfigError: it is missing.
    """
    try:
        import statsmodels  # noqa: F401
    except ImportError:
        raise ConfigError(
            "ETS and Theta, rivals of a model of series, need statsmodels: pip install 'everstep[forecast]'"
        ) from None


def ets(history: Floats, horizon: int, season: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each step ahead by ETS(A, Ad, A), without a season ETS(A, Ad, N).

    Level, damped trend and season are smoothed with weights of maximal likelihood (Hyndman et al. 2008, "Forecasting
    with exponential smoothing").

    Args:
        history: values, without gaps.
        horizon: H.
        season: 1: none; a season of which the history has no three is left out, too.

    Raises:
        ConfigError: statsmodels is missing.
    """
    check_installed()
    from pandas import Series  # statsmodels foretells of nothing else
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    known = history[-LONGEST:]
    seasonal = season > 1 and len(known) >= 3 * season
    if len(known) < 10 or np.ptp(known) == 0:
        return np.full(horizon, known[-1]), np.zeros(horizon)
    more = {"seasonal": "add", "seasonal_periods": season} if seasonal else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimisers that stop early: the fit is used as it is
        fitted = ETSModel(Series(known), error="add", trend="add", damped_trend=True, **more).fit(
            disp=False, maxiter=200
        )
        found = fitted.get_prediction(start=len(known), end=len(known) + horizon - 1)
    variance = np.asarray(found.forecast_variance, np.float64)
    return np.asarray(found.predicted_mean, np.float64), np.sqrt(np.maximum(variance, 0.0))


def theta(history: Floats, horizon: int, season: int) -> Floats:
    """The Theta method: half of the trend line, half of simple exponential smoothing (Assimakopoulos & Nikolopoulos
    2000), of what is left after the season.

    Args:
        history: values, without gaps.
        horizon: H.
        season: 1: none.

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
