"""Progress of a training on stderr: one live line on a terminal, otherwise a plain line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from everstep.learn.metrics import Metrics, Unwritten
from everstep.learn.selection import Validation

_LIVE_SECONDS = 0.2


def plain(text: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Screen:
    """The destination of lines: `log` if given, else a live line if stderr is a terminal, else stderr."""

    def __init__(self, log: Callable[[str], None] | None):
        self._log = log or plain
        self._live: Any = None
        if log is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(16), TextColumn("{task.percentage:>3.0f}% {task.description}"))
            console = Console(stderr=True)
            self._live = Progress(*columns, console=console, auto_refresh=False, transient=True)
            self._task = self._live.add_task("", total=1.0)
            self._live.start()

    @property
    def live(self) -> bool:
        """Whether the live line is used."""
        return self._live is not None

    def say(self, text: str) -> None:
        """Print a permanent line."""
        if self._live is None:
            self._log(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def show(self, text: str, fraction: float) -> None:
        """Show the progress: redraw the live line, or print a plain line."""
        if self._live is None:
            self._log(f"{100 * fraction:3.0f}% {text}")
        else:
            self._live.update(self._task, description=text, completed=fraction, refresh=True)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()


@dataclass(frozen=True)
class Point:
    """The position of a run: optimizer steps, epochs (fractional), targets seen, seconds, share of the budget used."""

    step: int
    epoch: float
    tokens: int
    seconds: float
    fraction: float


@dataclass(frozen=True)
class Units:
    """The name of a target ("token", "sentence") and the unit of its loss ("nats")."""

    target: str = "token"
    loss: str = "nats"
    scores: frozenset[str] = frozenset()
    """Names of measures for which higher is better."""


Callback: TypeAlias = Callable[[dict[str, Any]], bool | None]
"""Called with each record of `metrics.jsonl`; True ends the training."""


@dataclass(frozen=True)
class Reporting:
    """The destination of reports, and their units."""

    screen: Screen
    units: Units = Units()
    callbacks: Sequence[Callback] = ()


@dataclass
class _Window:
    """Sums since the last record."""

    tokens: int
    seconds: float
    loss: float = 0.0
    steps: int = 0


@dataclass
class Reporter:
    """Turns steps and validations into records and lines.

    Attributes:
        every: seconds between two records.
        stop: "callback" once a callback has returned True, else "".
    """

    reporting: Reporting
    metrics: Metrics | Unwritten
    every: float
    start: Point
    stop: str = ""
    last: dict[str, Any] = field(default_factory=dict)
    _valid: str = ""
    _shown: float = 0.0

    def __post_init__(self) -> None:
        self._window = _Window(self.start.tokens, self.start.seconds)
        self.screen, self.units = self.reporting.screen, self.reporting.units

    def step(self, point: Point, loss: float, norm: float | None, rate: float) -> None:
        """Record one step: summed loss, gradient norm (None: there is no gradient), learning rate."""
        self._window.loss += loss
        self._window.steps += 1
        self._norm, self._rate = norm, rate
        if point.seconds - self._window.seconds >= self.every:
            self.flush(point)
        elif self.screen.live and time.monotonic() - self._shown > _LIVE_SECONDS:
            self._shown = time.monotonic()
            self.screen.show(self._text(point), point.fraction)

    def flush(self, point: Point) -> None:
        """Write a record of the steps since the last record, if any."""
        if not self._window.steps:
            return
        speed, loss = self._speed(point), self._loss(point)
        self.last = {
            "step": point.step,
            "epoch": round(point.epoch, 4),
            f"{self.units.target}s": point.tokens,
            "seconds": round(point.seconds, 3),
            "loss": loss,
            **({} if self._norm is None else {"gradient_norm": self._norm}),
            "learning_rate": self._rate,
            f"{self.units.target}s_per_second": round(speed, 1),
        }
        self._record(self.last)
        self.screen.show(self._text(point), point.fraction)
        self._window = _Window(point.tokens, point.seconds)

    def validation(self, point: Point, found: Validation, best: bool) -> None:
        """Write a record of one validation: mean loss, other measures, and whether it is the best so far.

        Call `flush` before, so that the time of the validation does not count towards the speed of the steps.
        """
        self._window.seconds = point.seconds
        self._valid = f"  valid {found.shown}"
        others = "".join(f"  {name} {value:.4f}" for name, value in found.measures.items())
        self.screen.say(
            f"step {point.step}  valid {found.loss:.4f} {self.units.loss}{others}{'  (best)' if best else ''}"
        )
        where = {"step": point.step, "epoch": round(point.epoch, 4), f"{self.units.target}s": point.tokens}
        measures = {"valid": found.loss, **{f"valid.{name}": value for name, value in found.measures.items()}}
        self._record({**where, "seconds": round(point.seconds, 3), **measures, "best": best})

    def _record(self, values: dict[str, Any]) -> None:
        self.metrics.record(values)
        for callback in self.reporting.callbacks:
            if callback(dict(values)):
                self.stop = "callback"

    def _loss(self, point: Point) -> float:
        return self._window.loss / max(1, point.tokens - self._window.tokens)

    def _speed(self, point: Point) -> float:
        return (point.tokens - self._window.tokens) / max(1e-9, point.seconds - self._window.seconds)

    def _text(self, point: Point) -> str:
        done = point.fraction - self.start.fraction
        left = (point.seconds - self.start.seconds) * (1 - point.fraction) / done if done > 0 else 0.0
        return (
            f"step {point.step}  epoch {point.epoch:.2f}  loss {self._loss(point):.4f} {self.units.loss}{self._valid}"
            f"  lr {self._rate:.3g}  {self._speed(point):,.0f} {self.units.target}s/s  {_duration(left)} left"
        )

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
