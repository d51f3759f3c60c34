"""Forecasting: predict the next values of series of numbers, with quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from everstep.data.readers.trained_form import form_of
from everstep.data.windows import WindowBatch, Windows
from everstep.learn.objective import Loss
from everstep.networks.forecaster import Forecaster, window_losses
from everstep.networks.forecaster_section import ForecasterSection
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.answers_of_series import asked_predictions
from everstep.runs.backtests import backtest, backtest_picture
from everstep.runs.forecast_pictures import forecast_pictures
from everstep.runs.forecasts import MEANING, figures_of, measured
from everstep.runs.recipe import Recipe
from everstep.runs.series_data import VALIDATED, SeriesData, SeriesSection
from everstep.runs.series_export import ExportsForecasts
from everstep.runs.series_rivals import SeriesRivals
from everstep.runs.series_stream import SeriesStream
from everstep.runs.task import NOTHING_ELSE, Asked, Prediction, Progress, Purpose, Say, Task
from everstep.state import State
from everstep.storage.files import replace_file

SCORED = 1024
"""Windows in a batch of validation, scoring and metrics."""


class ForecastRecipe(Recipe):
    """Series of numbers, and a network that reads a window and predicts the horizon after it."""

    data: SeriesSection = SeriesSection()
    model: ForecasterSection = ForecasterSection()

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of every recipe, counts that are scaled, and bands of errors without a validation."""
        yield from super().disagreements()
        if self.model.bands == "errors" and not self.data.validated:
            yield "model.bands", "expected head without a validation split (data.valid_part); got errors"
        if self.model.head == "negative-binomial" and self.data.scaling != "none":
            yield (
                "data.scaling",
                f"expected none beside model.head: negative-binomial, whose values are counts; got {self.data.scaling}",
            )


class Forecast(ExportsForecasts, Task[ForecastRecipe]):
    """Forecast series such as load, demand and sensor values, with quantiles."""

    Recipe = ForecastRecipe
    extras = ("polars",)
    remedy = "pip install 'everstep[forecast]'"
    files = ("series.json",)
    unit = "value"
    loss_unit = "units of the loss"
    shown = ("mase", "mae", "rmse", "wql")
    meaning = MEANING
    understands = frozenset({"anomalies", "paths"})
    reads = {"predict": "history.csv"}
    learned: LearnedSeries

    @cached_property
    def series(self) -> SeriesData:
        """The series of the recipe and their splits."""
        return SeriesData(self.recipe.data, self.recipe.model, self.recipe.seed)

    def prepare(self) -> None:
        """Fit the time grid, the season and the scaling of each series to the training split."""
        self.learned = self.series.learned()

    def ready(self, say: Say) -> None:
        """Report the columns, the number of windows, the rows left out and suspicious input."""
        for line in [*self.summary(), *self.series.told(self.learned)]:
            say(line)

    def save(self, run: Path) -> None:
        """Write `series.json`."""
        replace_file(run / "series.json", self.learned.to_bytes())

    def open(self, run: Path) -> None:
        """Read what `save` wrote."""
        self.learned = LearnedSeries.load(run / "series.json")

    def splits(self) -> tuple[str, ...]:
        """The splits of the recipe, among train, valid and test."""
        return self.series.splits()

    def model(self) -> Forecaster:
        """A new `Forecaster`."""
        return Forecaster(self.recipe.model, self.learned.shape, self.code.find)

    def batches(self, split: str, model: Any, purpose: Purpose) -> Windows:
        """Windows of a split: shuffled to learn from, which also initialises the highway; in order otherwise."""
        learn, most = purpose == "learn", VALIDATED if purpose == "validate" else None
        size = self.recipe.train.batch_size if learn else SCORED
        windows = self.series.windows(split, self.learned, size, learn, most)
        if learn:
            model.begin(windows)
        return windows

    def objective(self, model: Any, batch: WindowBatch, state: State) -> Iterator[Loss]:
        """The loss of the head on the targets of each window."""
        return window_losses(model, batch)

    def metrics(self, model: Any, split: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """The errors on all windows of a split, and those of simple rivals."""
        said = measured(model, self.batches(split, model, "score"), progress)
        return figures_of(said, self.series, self.learned, split, self._rivals)

    def validate(self, model: Any) -> dict[str, float]:
        """The loss and the errors on the split "valid". Quantiles that are those of errors are fitted to it."""
        windows = self.batches("valid", model, "validate")
        model.calibrate(windows)
        found = figures_of(measured(model, windows), self.series, self.learned, "valid")
        return {name: value for name, value in found.items() if isinstance(value, float)}

    def digest(self, split: str) -> str:
        """The SHA-256 of all series, since the splits are parts of the same series."""
        return self.series.panel.digest()

    def summary(self) -> list[str]:
        """The series, for the card."""
        return [f"data: {self.recipe.data.train}", *self.learned.summary()]

    def asked_lines(self, verb: str) -> str:
        """A table of the past."""
        return f"The past values, as a table in the form of training: {form_of(self.learned.roles)}."

    def predict(self, model: Any, lines: Iterable[str], asked: Asked = NOTHING_ELSE) -> Iterator[Prediction]:
        """Forecast each series of a table: unique_id, ds, mean and quantiles. Reads all lines first."""
        return asked_predictions(model, self.series.given(lines, self.learned), self.learned, asked, self.recipe.seed)

    def stream(self, model: Any) -> SeriesStream:
        """Forecasts after each value."""
        return SeriesStream(model, self.learned)

    @cached_property
    def _rivals(self) -> SeriesRivals:
        return SeriesRivals(self.series, self.learned)

    def rivals(self, split: str, quick: bool = False) -> list[dict[str, Any]]:
        """The errors of naive rules and of ridge regression on lags; without `quick` also of ETS and Theta."""
        return self._rivals.figures(split, quick)

    def backtest(self, model: Any, split: str, number: int, step: int | None, quick: bool) -> dict[str, Any]:
        """The errors from the last origins of a split, of this run and of its rivals."""
        return backtest(model, self.series, self._rivals, split, number, step, quick)

    backtest_picture = staticmethod(backtest_picture)

    def pictures(self, model: Any, out: Path, text: str | None) -> Iterator[tuple[Path, str]]:
        """Forecasts with their quantiles, errors by step ahead and residuals, from the data of the run."""
        del text
        yield from forecast_pictures(model, self.series, self.learned, self._rivals, out)
