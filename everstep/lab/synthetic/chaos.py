"""Chaotic series: Lorenz and Mackey–Glass, integrated by the classical Runge–Kutta method (RK4)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Array, Drawn, Kind, Problem, check_whole

# mean and standard deviation of the attractors, to standardise inputs: long averages at the parameters below
_LORENZ_MEAN, _LORENZ_SD = np.array([0.0, 0.0, 23.55]), np.array([7.92, 9.01, 8.62])
_MACKEY_MEAN, _MACKEY_SD = 0.930, 0.226
_SETTLED_LORENZ, _SETTLED_MACKEY = 20.0, 200  # time to reach the attractor
_SPREAD_MACKEY = 256  # random offset of the start, since phases of series stay similar for thousands of steps


def lorenz(
    count: int, dt: float = 0.02, start: Array | tuple[float, float, float] = (1.0, 1.0, 1.0), discard: int = 0
) -> Array:
    """A trajectory of Lorenz' system (1963): ẋ = σ(y − x), ẏ = x(ρ − z) − y, ż = xy − βz, with σ = 10, ρ = 28, β = 8/3.

    >>> lorenz(1000).shape
    (1000, 3)

    Args:
        count: number of points.
        dt: time between two points, one RK4 step.
        start: (3,), or (rows, 3) for several trajectories.
        discard: number of first points to drop; the first point is one step after `start`.

    Returns:
        (count, 3) or (rows, count, 3), float64.

    Raises:
        ValueError: dt is outside (0, 0.1], where RK4 is inaccurate, or there are no points.
    """
    _check_dt("lorenz", dt)
    if count < 1 or discard < 0:
        raise ValueError(f"lorenz: count should be ≥ 1 and discard ≥ 0, but they are {count} and {discard}")
    state: Array = np.asarray(start, np.float64).T
    points = np.empty((count, *state.shape))
    for k in range(-discard, count):
        a = _lorenz_slope(state)
        b = _lorenz_slope(state + dt / 2 * a)
        c = _lorenz_slope(state + dt / 2 * b)
        state = state + dt / 6 * (a + 2 * b + 2 * c + _lorenz_slope(state + dt * c))
        if k >= 0:
            points[k] = state
    return points if points.ndim == 2 else points.transpose(2, 0, 1)


def _lorenz_slope(state: Array) -> Array:
    x, y, z = state
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])


def mackey_glass(
    count: int,
    tau: float = 17.0,
    *,
    step: float = 0.1,
    sample: float = 1.0,
    history: float | Array = 1.2,
    discard: int = 1001,
) -> Array:
    """The Mackey–Glass series (1977): ẋ(t) = 0.2 x(t − τ) / (1 + x(t − τ)¹⁰) − 0.1 x(t); chaotic for τ ≳ 16.8.

    Integrated by RK4; the delayed value at a half step is the mean of its neighbours.

    >>> x = mackey_glass(100)
    >>> x.shape, bool((0.2 < x).all() and (x < 1.5).all())
    ((100,), True)

    Args:
        count: number of samples.
        tau: the delay τ, a multiple of `step`.
        step: step of the integration.
        sample: time between two samples, a multiple of `step`.
        history: x(t) for t ≤ 0: a number, or (rows,) numbers for several series.
        discard: number of first samples to drop; the first sample is x(0).

    Returns:
        (count,) or (rows, count), float64.

    Raises:
        ValueError: there are no samples, or a time is not a multiple of `step`.
    """
    if count < 1 or discard < 0:
        raise ValueError(f"mackey_glass: count should be ≥ 1 and discard ≥ 0, but they are {count} and {discard}")
    delay, every = (_multiple(name, value, step) for name, value in (("tau", tau), ("sample", sample)))
    start: Array = np.asarray(history, np.float64)
    steps = (discard + count - 1) * every
    x = np.empty((delay + steps + 1, *start.shape))
    x[: delay + 1] = start
    for now in range(delay, delay + steps):
        here, old, next_old = x[now], x[now - delay], x[now - delay + 1]
        mid_gain, gain, next_gain = (0.2 * d / (1 + d**10) for d in ((old + next_old) / 2, old, next_old))
        a = gain - 0.1 * here
        b = mid_gain - 0.1 * (here + step / 2 * a)
        c = mid_gain - 0.1 * (here + step / 2 * b)
        x[now + 1] = here + step / 6 * (a + 2 * b + 2 * c + next_gain - 0.1 * (here + step * c))
    samples: Array = x[delay + discard * every :: every].T
    return samples


def _multiple(name: str, value: float, step: float) -> int:
    if not step > 0 or not value > 0 or not math.isclose(value / step, round(value / step), rel_tol=1e-9):
        raise ValueError(f"mackey_glass: {name} should be a multiple of step={step}, but is {value}")
    return round(value / step)


def _check_dt(who: str, dt: float) -> None:
    if not 0 < dt <= 0.1:
        raise ValueError(f"{who}: dt should be in (0, 0.1], but is {dt}")


@dataclass(frozen=True)
class _Ahead(Problem):
    """The value of a series `horizon` points later, at every step."""

    steps: int
    horizon: int = 1
    kind: ClassVar[Kind] = "number"

    def __post_init__(self) -> None:
        check_whole(self, "steps", self.steps, 1)
        check_whole(self, "horizon", self.horizon, 1)

    @abstractmethod
    def points(self, rows: int, random: np.random.Generator) -> Array:
        """Standardised series (rows, steps + horizon, features)."""

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        points = self.points(rows, random)
        return Drawn(points[:, : self.steps], points[:, self.horizon :])


@dataclass(frozen=True)
class Lorenz(_Ahead):
    """The state of Lorenz' system `horizon` points later, at every step; see `lorenz`.

    Each sequence is a different trajectory on the attractor. All three coordinates are standardised, so that the
    baseline is about 1.

    >>> Lorenz(steps=50).batch(3).targets.shape
    torch.Size([3, 50, 3])

    Args:
        steps: T.
        horizon: prediction horizon, in points.
        dt: time between two points. The largest Lyapunov exponent is about 0.906 per unit of time.

    Raises:
        ValueError: a size is below 1, or dt is outside (0, 0.1].
    """

    dt: float = 0.02
    input_size = 3
    outputs = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_dt("Lorenz", self.dt)

    def points(self, rows: int, random: np.random.Generator) -> Array:
        """Standardised trajectories on the attractor."""
        start = _LORENZ_MEAN + _LORENZ_SD * random.standard_normal((rows, 3))
        points = lorenz(self.steps + self.horizon, self.dt, start, discard=round(_SETTLED_LORENZ / self.dt))
        scaled: Array = (points - _LORENZ_MEAN) / _LORENZ_SD
        return scaled


@dataclass(frozen=True)
class MackeyGlass(_Ahead):
    """The value of the Mackey–Glass series `horizon` samples later, at every step; see `mackey_glass`.

    Each sequence is a different series, with a constant history drawn from 0.5 … 1.3, starting 200 … 455 samples later;
    standardised by mean (0.930) and standard deviation (0.226) of the attractor of τ = 17.

    >>> MackeyGlass(steps=20, horizon=84).batch(2).targets.shape
    torch.Size([2, 20, 1])

    Args:
        steps: T.
        horizon: prediction horizon, in samples; 84 is customary.
        tau: τ, a multiple of 0.1.

    Known limit: a batch takes about 0.1 s for any number of rows, since the integration is a Python loop.

    Raises:
        ValueError: a size is below 1, or τ is not a multiple of 0.1.
    """

    tau: float = 17.0
    input_size = 1
    outputs = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _multiple("tau", self.tau, 0.1)

    def points(self, rows: int, random: np.random.Generator) -> Array:
        """Standardised series with random histories and offsets."""
        history = random.uniform(0.5, 1.3, rows)
        count = self.steps + self.horizon
        series = mackey_glass(count + _SPREAD_MACKEY - 1, self.tau, history=history, discard=_SETTLED_MACKEY)
        places = random.integers(0, _SPREAD_MACKEY, (rows, 1)) + np.arange(count)
        scaled: Array = (np.take_along_axis(series, places, 1) - _MACKEY_MEAN) / _MACKEY_SD
        return scaled[..., None]
