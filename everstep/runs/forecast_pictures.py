"""The pictures of a model of series: some forecasts, errors by step ahead, residuals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from everstep.data.panel import Floats
from everstep.look.drawn_forecasts import DrawnWindow, draw_by_step, draw_forecasts, draw_residuals
from everstep.measures.forecast_errors import LEVELS, Forecasts, by_step
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.forecasts import Said, in_units, measured, targets_of
from everstep.runs.series_data import SeriesData
from everstep.runs.series_rivals import SeriesRivals

EXAMPLES = 6
"""Windows that are drawn."""


def forecast_pictures(
    model: Forecaster, data: SeriesData, learned: LearnedSeries, rivals: SeriesRivals, out: Path
) -> Iterator[tuple[Path, str]]:
    """Of the last split."""
    split = data.splits()[-1]
    said = measured(model, data.windows(split, learned, 1024))
    quantiles = None if said.found.quantiles is None else in_units(said.found.quantiles, said.windows, data, learned)
    found = Forecasts(in_units(said.found.mean, said.windows, data, learned), quantiles)
    came = targets_of(said.target, said.windows, data, learned, split)
    yield (
        out / "forecasts.png",
        draw_forecasts(_shown(said, found, came.target, data, learned), LEVELS, out / "forecasts.png"),
    )
    steps = {"this run": by_step(found, came.target)}
    steps |= {name: by_step(of, came.target) for name, of in rivals.found(split).items()}
    unit = "rows" if learned.counted or learned.frequency.irregular else learned.frequency.name
    yield out / "errors-by-step.png", draw_by_step(steps, unit, out / "errors-by-step.png")
    words = draw_residuals(came.target, found.median, found.quantiles, LEVELS, out / "residuals.png")
    yield out / "residuals.png", words


def _shown(said: Said, found: Forecasts, target: Floats, data: SeriesData, learned: LearnedSeries) -> list[DrawnWindow]:
    """Windows from all over, each with its history."""
    windows, panel = said.windows, learned.normalised(data.panel) if data.section.figures == "scaled" else data.panel
    places = np.unique(np.linspace(0, windows.number - 1, EXAMPLES).round().astype(int))
    shown = []
    for place in places:
        series, row = int(windows.series[place]), int(windows.rows[place])
        history = panel.values(series)[max(0, row - windows.window) : row]
        begins = panel.texts(series, np.array([row]))[0]
        bands = None if found.quantiles is None else found.quantiles[place]
        shown.append(DrawnWindow(panel.ids[series], begins, history, target[place], found.mean[place], bands))
    return shown
