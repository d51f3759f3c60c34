"""Anomaly scores: how unlikely each value is under the forecast from the values before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from everstep.data.panel import with_rows_ahead
from everstep.data.readers.series import Read
from everstep.data.windows import Windows
from everstep.errors import DataError
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries, check_counts
from everstep.runs.forecasts import csv_line
from everstep.runs.task import Prediction

HEADER = ("unique_id", "ds", "y", "score")


def anomalies(model: Forecaster, given: Read, learned: LearnedSeries) -> Iterator[Prediction]:
    """The anomaly score of each value as CSV lines: a header, then one row per grid step of each series.

    The score is −log p in nats, p the two-sided tail probability of a value one step ahead (`Forecaster.surprise`). It
    is empty where the value is missing or the window before it has no value.

    Raises:
        DataError: a point forecast without a validation split, which has no distribution; values that are no counts,
            with a distribution of counts.
    """
    if model.residuals is not None and model.residuals.isnan().any():
        raise DataError("anomalies: model.head=point needs the errors of a validation split (data.valid_part) to score")
    panel, shape = given.panel, learned.shape
    if model.head.in_data_units:
        check_counts(panel)
    learned = learned.with_scales_of(panel)
    panel, _ = with_rows_ahead(panel, shape.horizon, learned.usual_gap)
    begin = np.zeros(len(panel), np.int64)
    windows = Windows(
        learned.normalised(panel),
        begin,
        panel.known - 1,
        panel.known,
        window=shape.window,
        horizon=shape.horizon,
        batch_size=1024,
        calendar=learned.calendar,
        every=True,
        usual_gap=learned.usual_gap,
    )
    own, (shift, scale) = learned.numbers(panel.ids), learned.scales_of(panel)
    yield Prediction(csv_line(HEADER), {})
    model.eval()
    device = model.write.weight.device
    series, times = -1, list[str]()
    for index in range(len(windows)):
        batch = windows.batch(0, index)
        places, rows = batch.series.numpy(), windows.rows[index * 1024 :][: batch.rows]
        numbered = batch.numbered(torch.from_numpy(own[places])).to(device)
        mean, _, law = model.laws(numbered)
        scores = model.surprise(law[:, 0], numbered.target[:, 0]).cpu()
        scores[(batch.values.isnan().all(1) | batch.target[:, 0].isnan())] = torch.nan
        means = learned.restored(mean[:, :1].cpu().double().numpy(), shift[places], scale[places])[:, 0]
        for place, row, score, expected in zip(places, rows, scores.tolist(), means.tolist(), strict=True):
            if place != series:
                series, times = place, panel.texts(int(place), np.arange(panel.known[place]))
            value = float(panel.target[panel.starts[place] + row])
            yield _answer((panel.ids[place], times[row]), value, score, expected, bool(own[place] == shape.series))


def _answer(where: tuple[str, str], value: float, score: float, expected: float, unknown: bool) -> Prediction:
    """The line and the record of a value of a series at a time."""
    known = not math.isnan(score)
    record = {
        "unique_id": where[0],
        "ds": where[1],
        "y": None if math.isnan(value) else value,
        "score": score if known else None,
        "mean": expected if known else None,
        "unknown_series": unknown,
    }
    texts = ("" if math.isnan(value) else f"{value:.10g}", f"{score:.4f}" if known else "")
    return Prediction(csv_line((*where, *texts)), record)
