"""Learning curves: training and validation loss, and other validation measures, against steps and time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from everstep.errors import RunError
from everstep.learn.metrics import read_metrics
from everstep.look.style import COLOURS, DASHES, canvas, save, whole

TRAINING, VALIDATION = COLOURS[:2]
BITS = 1 / math.log(2)
LEVEL = 0.01
"""Smaller relative changes of the loss count as none."""


Point: TypeAlias = tuple[int, float, float]


@dataclass
class Curves:
    """Learning curves from `metrics.jsonl`, as points (step, minutes, value).

    Attributes:
        training, validation: the losses; nats are converted to bits.
        measures: other validation measures by name, in their own units.
        kept: the step of the kept weights, if recorded.
        select: the measure that selected them, if it is not the loss.
    """

    training: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    measures: dict[str, list[Point]] = field(default_factory=dict)
    kept: int | None = None
    select: str | None = None

    def best(self) -> int:
        """The index of the validation whose weights are kept; if not recorded, that of the lowest loss."""
        steps = [step for step, _, _ in self.validation]
        return steps.index(self.kept) if self.kept in steps else self.lowest()

    def lowest(self) -> int:
        """The index of the validation with the lowest loss."""
        return min(range(len(self.validation)), key=lambda place: self.validation[place][2])


def read_curves(metrics: Path, loss_unit: str = "nats", select: str | None = None) -> Curves:
    """Read the losses and other validation measures in a run's `metrics.jsonl`.

    Args:
        metrics: the file.
        loss_unit: the unit of the losses; nats are converted to bits.
        select: the measure that selected the weights (`train.select`); None: the loss.

    Raises:
        RunError: the file is missing or holds no loss.
    """
    named = (select or "loss").removeprefix("valid.")
    curves = Curves(select=None if named == "loss" else _shown(named))
    for record in read_metrics(metrics):
        minutes = float(record.get("seconds", math.nan)) / 60
        for key, points in (("loss", curves.training), ("valid", curves.validation)):
            if isinstance(record.get(key), int | float) and math.isfinite(record[key]):
                points.append((record["step"], minutes, record[key] * (BITS if loss_unit == "nats" else 1)))
        for key, value in record.items():
            if key.startswith("valid.") and isinstance(value, int | float) and math.isfinite(value):
                name = _shown(key.removeprefix("valid."))
                curves.measures.setdefault(name, []).append((record["step"], minutes, value))
        if record.get("best") is True:
            curves.kept = record["step"]
    if not curves.training and not curves.validation:
        raise RunError(f"{metrics} holds no loss yet; train for longer, then look again.")
    return curves


def _shown(measure: str) -> str:
    """The displayed name of a measure."""
    return measure.replace("_", " ")


def learning_curves(
    metrics: Path, to: Path | Axes, token: str = "token", loss_unit: str = "nats", select: str | None = None
) -> Curves:
    """Draw a run's training loss (thin: as measured, thick: smoothed) and validation loss.

    A PNG also shows other validation measures. The validation whose weights are kept is marked.

    Args:
        metrics: a run's `metrics.jsonl`.
        to: the PNG to write, or axes to draw on.
        token: the name of an item with one loss, for the axis: "character", "word", "text".
        loss_unit: the unit of the loss; nats are drawn as bits.
        select: the measure that selected the weights (`train.select`); None: the loss.

    Raises:
        RunError: the file is missing or holds no loss.
    """
    curves = read_curves(metrics, loss_unit, select)
    if isinstance(to, Axes):
        draw_curves(to, curves, token, loss_unit)
        return curves
    alike = _alike(curves.measures)
    figure = canvas(max(6.0, 1.6 * len(alike)))
    if alike:
        grid = figure.add_gridspec(len(alike), 2)
        draw_curves(figure.add_subplot(grid[:, 0]), curves, token, loss_unit)
        for row, measures in enumerate(alike):
            axes = figure.add_subplot(grid[row, 1])
            _draw_measures(axes, measures)
            if curves.select in measures:
                _mark(axes, measures[curves.select], curves.kept, "best")
            if row < len(alike) - 1:
                axes.set_xlabel("")
    else:
        draw_curves(figure.subplots(), curves, token, loss_unit)
    save(figure, to)
    return curves


def _alike(measures: dict[str, list[Point]]) -> list[dict[str, list[Point]]]:
    """Groups of measures that share an axis: all measures in [0, 1] together, each other one by itself."""
    shares = {name: points for name, points in measures.items() if all(0 <= value <= 1 for _, _, value in points)}
    others = [{name: points} for name, points in measures.items() if name not in shares]
    return [shares, *others] if shares else others


def _draw_measures(axes: Axes, measures: dict[str, list[Point]]) -> None:
    for (name, points), colour, dash in zip(measures.items(), cycle(COLOURS), cycle(DASHES)):
        steps, values = [step for step, _, _ in points], [value for _, _, value in points]
        axes.plot(steps, values, color=colour, linestyle=dash, marker="o", linewidth=2.2, label=name)
    axes.set_xlabel("optimizer steps", fontsize=14)
    axes.set_ylabel("validation", fontsize=14)
    axes.tick_params(labelsize=12)
    whole(axes)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=13, frameon=False)


def _mark(axes: Axes, points: list[Point], kept: int | None, word: str, colour: str = "black") -> None:
    """Mark the step whose weights are kept with `word` and the value there."""
    at = next((place for place, (step, _, _) in enumerate(points) if step == kept), None)
    if at is None:
        return
    step, _, value = points[at]
    axes.annotate(
        f"{word} {value:.2f}",
        (step, value),
        xytext=(0, 14),
        textcoords="offset points",
        ha="right" if step > axes.get_xlim()[1] / 2 else "left",
        color=colour,
        fontsize=14,
        fontweight="bold",
        path_effects=[withStroke(linewidth=4, foreground="white")],
    )


def per(token: str, loss_unit: str) -> str:
    """The unit of a drawn loss, such as "bits per word"."""
    return f"{'bits' if loss_unit == 'nats' else loss_unit} per {token}"


def draw_curves(axes: Axes, curves: Curves, token: str = "token", loss_unit: str = "nats") -> None:
    """Draw the curves on `axes`."""
    if curves.training:
        steps = [step for step, _, _ in curves.training]
        bits = [value for _, _, value in curves.training]
        axes.plot(steps, bits, color=TRAINING, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(bits), color=TRAINING, linewidth=2.2, label="training (smoothed)")
    if curves.validation:
        steps = [step for step, _, _ in curves.validation]
        bits = [value for _, _, value in curves.validation]
        axes.plot(steps, bits, color=VALIDATION, linewidth=2.2, marker="o", markersize=6, label="validation")
        word = "best" if curves.select is None else "kept"
        _mark(axes, curves.validation, steps[curves.best()], word, VALIDATION)
    axes.set_ylim(*_zoom(curves))
    axes.set_xlabel(f"optimizer steps{_duration(curves)}", fontsize=14)
    axes.set_ylabel(f"{per(token, loss_unit)} (lower is better)", fontsize=14)
    axes.tick_params(labelsize=12)
    whole(axes)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=13, frameon=False, loc="upper right")


def curve_words(curves: Curves, token: str = "token", loss_unit: str = "nats") -> str:
    """The caption: whether the training loss fell, how the validation loss changed, which weights are kept."""
    kept = ""
    if curves.select is not None and curves.validation:
        step = curves.validation[curves.best()][0]
        values = {at: f", {value:.2f}" for at, _, value in curves.measures.get(curves.select, [])}
        kept = f" Kept are the weights of step {step:,}, where {curves.select} is best{values.get(step, '')}."
    return _loss_words(curves, token, loss_unit) + kept


def _loss_words(curves: Curves, token: str, loss_unit: str) -> str:
    """Sentences on the change of training and validation loss."""
    unit = per(token, loss_unit)
    training = smooth([bits for _, _, bits in curves.training])
    fell = len(training) > 1 and training[-1] < training[0] - LEVEL * abs(training[0])
    words, lowest = "", "best" if curves.select is None else "lowest"
    if len(training) == 1:
        words = f"The training loss was measured once: {training[0]:.2f} {unit}. "
    elif training:
        verb = "fell" if fell else "has not fallen: it went"
        words = f"The training loss {verb} from {training[0]:.2f} to {training[-1]:.2f} {unit}. "
    if not curves.validation:
        return f"{words}There was no validation, so the curve cannot show overfitting."
    bits = [value for _, _, value in curves.validation]
    best = curves.lowest()
    step = curves.validation[best][0]
    if len(bits) == 1:
        return f"{words}Validation was measured once: {bits[0]:.2f}."
    if bits[-1] > bits[best] + LEVEL * abs(bits[best]):
        words += f"Validation was {lowest} at step {step:,}, {bits[best]:.2f}, and has risen to {bits[-1]:.2f} since: "
        after = [value for (at, _, _), value in zip(curves.training, training, strict=True) if at >= step]
        if len(after) > 1 and after[-1] < after[0]:
            return f"{words}the model learns by heart; more dropout, or stop earlier."
        return f"{words}the training loss does not fall either; a smaller learning rate may help."
    if bits[-1] < bits[-2] - LEVEL * abs(bits[-2]):
        return f"{words}Validation still falls at the end, to {bits[-1]:.2f}: longer training may help."
    return f"{words}Validation has levelled off at {bits[-1]:.2f}; the {lowest} is {bits[best]:.2f}, at step {step:,}."


def smooth(values: list[float], share: float = 0.05) -> list[float]:
    """Moving average over a window of `share` of the curve, truncated at the ends."""
    half = int(len(values) * share / 2)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _zoom(curves: Curves) -> tuple[float, float]:
    """Limits of the loss axis that exclude the first twentieth, whose steep fall would flatten the rest."""
    training = curves.training[len(curves.training) // 20 :]
    values = [bits for _, _, bits in training + curves.validation]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1
    return low - margin, high + margin


def _duration(curves: Curves) -> str:
    minutes = max((minutes for _, minutes, _ in curves.training + curves.validation), default=math.nan)
    if not math.isfinite(minutes):
        return ""
    return f"   ({minutes:.1f} minutes)" if minutes >= 1 else f"   ({60 * minutes:.0f} seconds)"
