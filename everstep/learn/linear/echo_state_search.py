"""Search for the scales, leak, radius and penalty of an echo state network by its error on held-out steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.learn.linear.ridge import Ridge, check_finite, numbers
from everstep.wirings.reservoir import Reservoir

_PLACES = 16
"""Positions, over all rows, from which a network runs freely."""
_WORST = 2.0
"""Upper bound of an error, in standard deviations; larger errors do not distinguish networks."""
_RANGES = {
    "radius": (0.2, 1.5),
    "leak": (0.1, 1.0),
    "input_scaling": (0.03, 2.0),
    "bias_scaling": (0.03, 2.0),
    "ridge": (1e-10, 1e-2),
}
"""Ranges of the random options, drawn log-uniformly."""
_FIRST = (
    {"radius": 0.9, "leak": 1.0, "input_scaling": 0.3, "bias_scaling": 0.1, "ridge": 1e-6},
    {"radius": 0.9, "leak": 0.5, "input_scaling": 0.3, "bias_scaling": 0.3, "ridge": 1e-8},
)
"""The first trials: one suits memory of fast inputs, one a dynamical system."""
_NEAR = 0.15
"""Standard deviation around the best so far, as a share of the logarithmic range."""


class Network(Protocol):
    """The part of `EchoState` that the search uses."""

    @property
    def cell(self) -> Cell: ...
    @property
    def readout(self) -> nn.Linear: ...
    def eval(self) -> Self: ...
    def fit(self, xs: Tensor, targets: Tensor, *, washout: int, ridge: float) -> Self: ...
    def predict(self, xs: Tensor) -> Tensor: ...
    def generate(self, steps: int, warm: Tensor) -> Tensor: ...


N = TypeVar("N", bound=Network)


class Found(NamedTuple, Generic[N]):
    """The result of a search.

    Attributes:
        model: the best network, its read-out learned from all steps.
        options: the options of its `Reservoir`, except sizes, seed and dtype.
        error: on the held-out steps, before the last fit: √(mean square error ÷ variance) per position or row,
            averaged geometrically.
    """

    model: N
    options: dict[str, Any]
    error: float


def search(
    network: Callable[[Reservoir, int], N],
    xs: Tensor | Any,
    targets: Tensor | Any,
    *,
    units: int,
    trials: int,
    free: int | None,
    washout: int,
    validation: float,
    seed: int,
) -> Found[N]:
    """See `EchoState.search`; `network` makes an echo state network from a reservoir and the number of outputs."""
    xs, targets = (numbers("EchoState.search", n, v).double() for n, v in (("xs", xs), ("targets", targets)))
    cut = _check(xs, targets, trials, washout, validation)
    for name, values in (("xs", xs), ("targets", targets)):
        check_finite("EchoState.search", name, values, ("row", "step", "feature"))
    exam = _Exam(xs, targets, cut, washout, _steps(xs, targets, cut, free))
    random = np.random.default_rng(seed)
    spread = xs[:, :cut].flatten(0, 1).std(0)

    def made(options: dict[str, Any]) -> N:
        cell = Reservoir(xs.shape[2], units, **options, seed=seed, dtype=torch.float64, device=xs.device)
        return network(cell, targets.shape[2])

    best: tuple[float, dict[str, float]] = (math.inf, {})
    for trial in range(trials):
        if trial < len(_FIRST):
            drawn = _FIRST[trial]
        else:
            drawn = _drawn(random) if 2 * trial < trials else _near(best[1], random)
        ridges = [drawn["ridge"] * factor for factor in (1e-2, 1.0, 1e2)]
        error, ridge = min(exam.errors(made(_options(drawn, spread)), ridges))
        best = min(best, (error, {**drawn, "ridge": ridge}), key=lambda pair: pair[0])
    options = _options(best[1], spread)
    return Found(made(options).fit(xs, targets, washout=washout, ridge=best[1]["ridge"]), options, best[0])


def _check(xs: Tensor, targets: Tensor, trials: int, washout: int, validation: float) -> int:
    """Check the arguments and return the first held-out step."""
    if xs.dim() != 3 or targets.dim() != 3 or xs.shape[:2] != targets.shape[:2]:
        raise ValueError(
            "EchoState.search: expected xs (batch, time, features) and targets (batch, time, outputs), but got shapes "
            f"{tuple(xs.shape)} and {tuple(targets.shape)}"
        )
    if trials < 1 or not 0 < validation < 1 or washout < 1:
        raise ValueError(
            "EchoState.search: expected trials ≥ 1, washout ≥ 1 and 0 < validation < 1, but they are "
            f"{trials}, {washout}, {validation}"
        )
    held = round(validation * (xs.shape[1] - washout))
    cut = xs.shape[1] - held
    if held < 2 or cut - washout < 2:
        raise ValueError(
            f"EchoState.search: {xs.shape[1]} steps leave too few to learn from and to hold out, with "
            f"washout={washout} and validation={validation}"
        )
    return cut


def _steps(xs: Tensor, targets: Tensor, cut: int, free: int | None) -> int:
    """The number of steps of free running."""
    follows = xs.shape == targets.shape and torch.equal(targets[:, :-1], xs[:, 1:])
    held = xs.shape[1] - cut
    if free is None:
        return min(100, held // 2) if follows else 0
    if not 0 <= free < held or (free and not follows):
        raise ValueError(
            f"EchoState.search: free={free} should be below the {held} steps held out, and targets the next inputs "
            f"(targets[:, t] = xs[:, t + 1]), which they are{'' if follows else ' not'}"
        )
    return free


class _Exam(NamedTuple):
    xs: Tensor
    targets: Tensor
    cut: int
    washout: int
    free: int

    @torch.no_grad()
    def errors(self, model: Network, ridges: list[float]) -> list[tuple[float, float]]:
        """Pairs of error and λ, for each λ."""
        regression, found = Ridge(), []
        hs = model.cell(self.xs[:, : self.cut])[0]
        for features, wanted in zip(hs[:, self.washout :], self.targets[:, self.washout : self.cut], strict=True):
            regression.add(features, wanted)
        model.eval()
        for ridge in ridges:
            try:
                weight, bias = regression.solve(ridge)
            except ValueError:  # singular, because λ is lost in rounding
                found.append((_WORST, ridge))
                continue
            model.readout.weight.copy_(weight)
            model.readout.bias.copy_(bias)
            found.append((self._error(model), ridge))
        return found

    def _error(self, model: Network) -> float:
        made, wanted = self._run_freely(model) if self.free else self._one_step(model)
        squares = (made - wanted).square() / self.targets.flatten(0, 1).var(0).clamp(min=1e-300)
        sizes = squares.mean((1, 2)).sqrt().nan_to_num(_WORST, _WORST).clamp(1e-12, _WORST)
        return float(sizes.log().mean().exp())

    def _one_step(self, model: Network) -> tuple[Tensor, Tensor]:
        return model.predict(self.xs)[:, self.cut :], self.targets[:, self.cut :]

    def _run_freely(self, model: Network) -> tuple[Tensor, Tensor]:
        rows, time = self.xs.shape[:2]
        places = np.linspace(self.cut, time - self.free, max(2, _PLACES // rows)).astype(int)
        warm = torch.cat([self.xs[:, place - self.washout : place] for place in places])
        wanted = torch.cat([self.targets[:, place - 1 : place - 1 + self.free] for place in places])
        return model.generate(self.free, warm), wanted


def _drawn(random: np.random.Generator) -> dict[str, float]:
    return {name: math.exp(random.uniform(math.log(least), math.log(most))) for name, (least, most) in _RANGES.items()}


def _near(best: dict[str, float], random: np.random.Generator) -> dict[str, float]:
    """Random options near the best so far; all but λ stay within their ranges."""
    found = {}
    for name, (least, most) in _RANGES.items():
        moved = best[name] * (most / least) ** (_NEAR * random.standard_normal())
        found[name] = moved if name == "ridge" else min(max(moved, least), most)
    return found


def _options(drawn: dict[str, float], spread: Tensor) -> dict[str, Any]:
    """Options of `Reservoir`, with the input scaling divided by the standard deviation of the inputs, `spread`."""
    scales = [drawn["input_scaling"] / max(float(s), 1e-12) for s in spread]
    return {name: drawn[name] for name in ("radius", "leak", "bias_scaling")} | {"input_scaling": scales}
