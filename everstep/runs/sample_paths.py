"""Sample paths: joint samples over the horizon, from the distribution of each step and the ranks of past windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from everstep.data.panel import Floats
from everstep.data.readers.series import Read
from everstep.errors import DataError
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries
from everstep.rivals.series_rules import filled
from everstep.runs.forecasts import csv_line, last_windows
from everstep.runs.task import Prediction

MOST = 10_000
"""The most paths of a series."""
SAME_PHASE = 10
"""The fewest past windows that begin in the same phase of the season; with fewer, windows of any phase serve."""


def sample_paths(
    model: Forecaster, given: Read, learned: LearnedSeries, number: int, seed: int
) -> Iterator[Prediction]:
    """Sample paths of each series as CSV lines: unique_id, ds, and a column per path.

    At each step the `number` values are quantiles of the forecast at the levels (i − ½) / `number`. The paths connect
    them by rank, as past windows of the same series did about the value before them (Schaake shuffle: Clark 2004, "The
    Schaake shuffle: a method for reconstructing space–time variability …"). The same seed gives the same paths.

    Raises:
        DataError: there is no distribution (a point without validation), or see `last_windows`.
    """
    if not 1 <= number <= MOST:
        raise DataError(f"paths: expected 1 to {MOST:,} of them; got {number:,}")
    if model.residuals is not None and model.residuals.isnan().any():
        raise DataError("paths: model.head=point needs the errors of a validation split (data.valid_part)")
    panel, horizon = given.panel, learned.shape.horizon
    windows, learned = last_windows(given, learned, horizon + 1)  # a past window, and the value before it
    shift, scale = learned.scales_of(panel)
    own = learned.numbers(panel.ids)
    levels = ((np.arange(number) + 0.5) / number).tolist()
    yield Prediction(csv_line(["unique_id", "ds", *(f"path{place + 1}" for place in range(number))]), {})
    model.eval()
    for index in range(len(windows)):
        batch = windows.batch(0, index)
        series = batch.series.numpy()
        law = model.laws(batch.numbered(torch.from_numpy(own[series])).to(model.write.weight.device))[2]
        for row, place in enumerate(series):
            found = model.quantiles_of(law[row : row + 1], levels).cpu().double().numpy()  # memory of one series
            values = learned.restored(found, shift[[place]], scale[[place]])[0]
            random = np.random.default_rng([seed, int(place)])
            name, history = panel.ids[place], filled(panel.values(int(place)))
            ranks = past_ranks(history, horizon, learned.season, number, random)
            joint = np.take_along_axis(values, ranks.T, 1)
            times = windows.panel.texts(int(place), panel.known[place] + np.arange(horizon))
            for time, numbers in zip(times, joint.tolist(), strict=True):
                record = {"unique_id": name, "ds": time} | {f"path{n + 1}": v for n, v in enumerate(numbers)}
                yield Prediction(csv_line([name, time, *(f"{value:.6g}" for value in numbers)]), record)


def past_ranks(
    history: Floats, horizon: int, season: int, number: int, random: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The ranks, from 0, of `number` past windows less the value before each, at each step, (number, H).

    The history has more than H values. Windows are drawn without repetition as long as there are enough; equal values
    are ranked at random.
    """
    latest = len(history) - horizon - 1
    same = np.arange(len(history) - 1, -1, -season)  # the phase of the forecast, which follows the last value
    same = same[same <= latest]
    begins = same if len(same) >= SAME_PHASE else np.arange(latest + 1)
    drawn = np.concatenate([random.permutation(begins) for _ in range(-(-number // len(begins)))])[:number]
    past = history[drawn[:, None] + 1 + np.arange(horizon)] - history[drawn][:, None]
    order = np.lexsort((random.random(past.shape), past), 0)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(number)[:, None].repeat(horizon, 1), 0)
    return ranks
