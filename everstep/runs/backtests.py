"""Rolling-origin backtests: forecasts from several origins of a split, by each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.panel import Ints
from everstep.data.windows import Windows
from everstep.errors import DataError
from everstep.look.drawn_backtest import draw_backtest
from everstep.measures.forecast_errors import Forecasts, forecast_measures
from everstep.networks.forecaster import Forecaster
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.forecasts import InUnits, in_units, measured, targets_of
from everstep.runs.series_data import SeriesData
from everstep.runs.series_rivals import SeriesRivals

OURS = "this run"
NO_TEST = "p_equal: windows of a single time give no test of equal accuracy; ask for more origins"
SHOWN = ("mase", "mae", "rmse", "wql", "crps", "coverage_80")


def backtest(
    model: Forecaster, data: SeriesData, rivals: SeriesRivals, split: str, number: int, step: int | None, quick: bool
) -> dict[str, Any]:
    """The errors of a model and of its rivals from the last `number` origins of a split, `step` steps apart.

    The weights stay as trained; each forecast reads the values before its origin, and its whole horizon lies within the
    split. Rivals without training see the same history.

    Args:
        model: the network.
        data: the series and their splits.
        rivals: its rivals.
        split: the split.
        number: the number of origins of each series, at most.
        step: steps from one origin to the next; None: as many as fit, at most the horizon.
        quick: leave out ETS and Theta.

    Returns:
        split, step, `origins` (a list from the oldest to the newest, each with its time `ds`, its number of `windows`
        and the measures of each model), and `models` (the means of measures over origins, the standard deviation of
        MASE, at how many origins a rival has a smaller MASE, and `p_equal`, see `diebold_mariano`). `notes` say why
        figures are missing.

    Raises:
        DataError: no series has a whole horizon in the split.
    """
    learned = rivals.learned
    windows, step = _origins(data, learned, split, number, step)
    last = data.part(split).end - learned.shape.horizon
    back = (last[windows.series] - windows.rows) // step
    said = measured(model, windows)
    came = targets_of(said.target, windows, data, learned, split)
    quantiles = None if said.found.quantiles is None else in_units(said.found.quantiles, windows, data, learned)
    ours = Forecasts(in_units(said.found.mean, windows, data, learned), quantiles)
    others = rivals.of_windows(windows, quick)
    models = {OURS: ours, **others}
    origins = []
    for place in sorted(set(back.tolist()), reverse=True):
        kept = back == place
        errors = {name: _errors(found, came, kept) for name, found in models.items()}
        origins.append({"ds": _named(windows, kept, place, step), "windows": int(kept.sum()), **errors})
    p_equal = rivals.compared(ours, others, windows, came)
    return {
        "split": split,
        "step": step,
        "origins": origins,
        "notes": [NO_TEST] if all(p is None for p in p_equal.values()) else [],
        "models": {name: {**_summary(name, origins), "p_equal": p_equal.get(name)} for name in models},
    }


def _origins(
    data: SeriesData, learned: LearnedSeries, split: str, number: int, step: int | None
) -> tuple[Windows, int]:
    """The windows of the last origins of each series, and the steps between two."""
    part, shape = data.part(split), learned.shape
    last = part.end - shape.horizon
    room = last - np.maximum(part.begin, 1)
    if (longest := int(room.max(initial=-1))) < 0:
        raise DataError(
            f"backtest: no series has a whole horizon of {shape.horizon} steps in the {split} split; hold out more "
            f"(data.{split}_part)"
        )
    if step is None:
        step = int(np.clip(longest // max(number - 1, 1), 1, shape.horizon))
    counts: Ints = np.where(room >= 0, np.minimum(room // step + 1, number), 0)
    windows = Windows(
        learned.normalised(data.panel),
        last - (counts - 1) * step,
        last,
        part.end,
        window=shape.window,
        horizon=shape.horizon,
        batch_size=1024,
        calendar=learned.calendar,
        stride=step,
        usual_gap=learned.usual_gap,
    )
    if not windows.number:
        raise DataError(f"backtest: no window of the {split} split has a value to read and one to predict")
    return windows, step


def _errors(found: Forecasts, came: InUnits, kept: NDArray[np.bool_]) -> dict[str, Any]:
    part = Forecasts(found.mean[kept], None if found.quantiles is None else found.quantiles[kept])
    measures = forecast_measures(part, came.target[kept], came.series[kept], came.scales[kept])
    return {name: measures[name] for name in SHOWN}


def _named(windows: Windows, kept: NDArray[np.bool_], back: int, step: int) -> str:
    """The time of the first step ahead, if it is the same for all series; else the distance from the last origin."""
    panel = windows.panel
    places = np.unique(panel.when(windows.series[kept], windows.rows[kept]))
    return panel.frequency.texts(places)[0] if len(places) == 1 else f"last origin − {back * step}"


def _summary(name: str, origins: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measure in SHOWN:
        values = [origin[name][measure] for origin in origins]
        found[measure] = None if None in values else float(np.mean(values))
        if measure == "mase":
            found["mase_sd"] = None if None in values else float(np.std(values))
    pairs = [(origin[name]["mase"], origin[OURS]["mase"]) for origin in origins]
    found["better_at"] = sum(theirs is not None and ours is not None and theirs < ours for theirs, ours in pairs)
    return found


def backtest_picture(found: dict[str, Any], path: Path) -> str:
    """Draw the errors of each model by origin; returns the caption."""
    measure = "mase" if all(origin[OURS]["mase"] is not None for origin in found["origins"]) else "mae"
    names = [origin["ds"] for origin in found["origins"]]
    errors = {
        model: np.array([origin[model][measure] for origin in found["origins"]], np.float64)
        for model in found["models"]
    }
    return draw_backtest(names, errors, measure.upper(), path)
