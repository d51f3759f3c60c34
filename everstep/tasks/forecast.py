"""Forecasting: what follows in series of numbers, with bands that say how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data.windows import WindowBatch, Windows
from everstep.learn.objective import Loss
from everstep.networks.forecaster import Forecaster, ForecasterSection, window_losses
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.forecast_pictures import forecast_pictures
from everstep.runs.forecasts import figures_of, measured, predictions
from everstep.runs.recipe import Recipe
from everstep.runs.series_data import VALIDATED, SeriesData, SeriesSection
from everstep.runs.series_rivals import SeriesRivals
from everstep.runs.task import Prediction, Progress, Purpose, Say, Task
from everstep.state import State
from everstep.storage.files import replace_file

SCORED = 1024
"""Windows that are scored at once."""


class ForecastRecipe(Recipe):
    """Series of numbers, a network that reads windows of them, the loss of its head on what follows."""

    data: SeriesSection = SeriesSection()
    model: ForecasterSection = ForecasterSection()


class Forecast(Task[ForecastRecipe]):
    """Load, demand, sensors: says what follows each series, and how sure that is."""

    Recipe = ForecastRecipe
    extras = ("polars",)
    remedy = "pip install 'everstep[forecast]'"
    files = ("series.json",)
    unit = "value"
    loss_unit = "units of the loss"
    shown = ("mase", "mae", "rmse", "wql")
    meaning = {
        "loss": "mean loss of the head a value, as in training",
        "mse": "mean squared error of the mean",
        "rmse": "its root",
        "mae": "mean absolute error of the median",
        "mase": "the same over that of the seasonal naive in each series' past; below 1 is better",
        "smape": "symmetric mean absolute percentage error of the median",
        "owa": "mean of sMAPE and MASE over those of Naive2; below 1 is better",
        "wql": "mean quantile loss over the mean size of the values",
        "crps": "continuous ranked probability score, of 11 quantiles",
        "coverage_80": "share of values from q0.1 to q0.9",
        "coverage_90": "share of values from q0.05 to q0.95",
    }
    learned: LearnedSeries

    @cached_property
    def series(self) -> SeriesData:
        """The series of the recipe and their parts."""
        return SeriesData(self.recipe.data, self.recipe.model, self.recipe.seed)

    def prepare(self) -> None:
        """The grid of time, the season, the scaling of each series of the training part."""
        self.learned = self.series.learned()

    def ready(self, say: Say) -> None:
        """What the columns are, how many windows there are, what was left out, what may be a mistake."""
        for line in [*self.summary(), *self.series.told(self.learned)]:
            say(line)

    def save(self, run: Path) -> None:
        """`series.json`."""
        replace_file(run / "series.json", self.learned.to_bytes())

    def open(self, run: Path) -> None:
        """What `save` wrote."""
        self.learned = LearnedSeries.load(run / "series.json")

    def splits(self) -> tuple[str, ...]:
        """train, valid and test, as far as there are such parts."""
        return self.series.splits()

    def model(self) -> Forecaster:
        """Segments of a window, cells, what they say of each step ahead."""
        return Forecaster(self.recipe.model, self.learned.shape, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Windows:
        """Windows: in any order to learn from, which the model begins with; in order else."""
        learn, most = purpose == "learn", VALIDATED if purpose == "validate" else None
        size = self.recipe.train.batch_size if learn else SCORED
        windows = self.series.windows(split, self.learned, size, learn, most)
        if learn:
            model.begin(windows)
        return windows

    def objective(self, model: Any, batch: WindowBatch, state: State) -> Iterator[Loss]:
        """The loss of the head on all values that follow a window."""
        return window_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """The errors of every window, and those of simple rules."""
        said = measured(model, self.batches(split, model, "score"), progress)
        return figures_of(said, self.series, self.learned, split, self._rivals)

    def validate(self, model: Any) -> dict[str, float]:
        """The loss and the errors of the split "valid"; bands of heads without a distribution are fitted to it."""
        windows = self.batches("valid", model, "validate")
        model.calibrate(windows)
        found = figures_of(measured(model, windows), self.series, self.learned, "valid")
        return {name: value for name, value in found.items() if isinstance(value, float)}

    def digest(self, split: str) -> str:
        """Of all values, since the parts are cut from the same series."""
        return self.series.panel.digest()

    def summary(self) -> list[str]:
        """The series."""
        return [f"data: {self.recipe.data.train}", *self.learned.summary()]

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[Prediction]:
        """What follows each series of a table: unique_id, ds, mean and quantiles; all lines are read first."""
        return predictions(model, self.series.given(lines, self.learned), self.learned)

    @cached_property
    def _rivals(self) -> SeriesRivals:
        return SeriesRivals(self.series, self.learned)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """Rules that learn nothing, ridge regression on lags; in full also ETS and Theta."""
        return self._rivals.figures(split, quick)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Some forecasts with their bands, errors by step ahead, residuals; all of the data of the run."""
        del text
        yield from forecast_pictures(model, self.series, self.learned, self._rivals, out)
