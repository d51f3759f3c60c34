"""What `predict` says of series: forecasts, sample paths or anomaly scores."""

from __future__ import annotations

from collections.abc import Iterator

from everstep.data.readers.series import Read
from everstep.errors import ConfigError
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.anomalies import anomalies
from everstep.runs.forecasts import predictions
from everstep.runs.run import warn
from everstep.runs.sample_paths import sample_paths
from everstep.runs.task import Asked, Prediction


def asked_predictions(
    model: Forecaster, given: Read, learned: LearnedSeries, asked: Asked, seed: int
) -> Iterator[Prediction]:
    """The lines of the table that is asked for.

    Raises:
        ConfigError: both anomalies and paths are asked for.
        DataError: the history cannot be used.
    """
    if asked.anomalies and asked.paths:
        raise ConfigError("predict: expected either anomalies or paths; got both")
    for line in given.notes:
        warn(f"note: {line}")
    if asked.paths:
        return sample_paths(model, given, learned, asked.paths, seed)
    return (anomalies if asked.anomalies else predictions)(model, given, learned)
