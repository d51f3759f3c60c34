"""NARMA: prediction of a nonlinear autoregressive moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Array, Drawn, Kind, Problem, check_whole

_COEFFICIENTS = {10: (0.3, 0.05, 1.5, 0.1), 30: (0.2, 0.04, 1.5, 0.001)}  # α, β, γ, δ
_BOUND = 2.0  # beyond it the series of order 10 diverges


def narma(inputs: Array, order: int = 10) -> Array:
    """y_{t+1} = α y_t + β y_t Σ_{i<n} y_{t−i} + γ u_{t−n+1} u_t + δ (Atiya & Parlos 2000), from zeros; n = `order`.

    α, β, γ, δ = 0.3, 0.05, 1.5, 0.1 for n = 10, and 0.2, 0.04, 1.5, 0.001 for n = 30,
    as in ReservoirPy; others take β = 0.004 there.

    >>> import numpy as np
    >>> narma(np.zeros((1, 3)))[0].round(4).tolist()
    [0.1, 0.1305, 0.1407]

    Args:
        inputs: u (rows, T), usually uniform in 0 … 0.5.
        order: 10 or 30.

    Returns:
        (rows, T): y_{t+1} at each t. It is not bounded: for some inputs the series of order 10 diverges.

    Raises:
        ValueError: another order.
    """
    if order not in _COEFFICIENTS:
        raise ValueError(f"narma: order should be 10 or 30, but is {order!r}")
    alpha, beta, gamma, delta = _COEFFICIENTS[order]
    rows, steps = inputs.shape
    u = np.concatenate([np.zeros((rows, order - 1)), inputs], 1)
    y = np.zeros((rows, order + steps))  # y[:, order − 1 + t] is y_t
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps):
            window = y[:, t : t + order]
            now = window[:, -1]
            drive = gamma * u[:, t] * u[:, t + order - 1]
            y[:, t + order] = alpha * now + beta * now * window.sum(1) + drive + delta
    series: Array = y[:, order:]
    return series


@dataclass(frozen=True)
class Narma(Problem):
    """y_{t+1} of `narma` at every step, from u_t ~ uniform(0, 0.5). Sequences that diverge (|y| > 2) are redrawn.

    >>> Narma(steps=50).batch(3).targets.shape
    torch.Size([3, 50, 1])

    Args:
        steps: T.
        order: 10 or 30.

    Raises:
        ValueError: no steps, or another order.
    """

    steps: int
    order: int = 10
    kind: ClassVar[Kind] = "number"
    input_size = 1
    outputs = 1

    def __post_init__(self) -> None:
        check_whole(self, "steps", self.steps, 1)
        if self.order not in _COEFFICIENTS:
            raise ValueError(f"Narma: order should be 10 or 30, but is {self.order!r}")

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        inputs = random.uniform(0, 0.5, (rows, self.steps))
        series = narma(inputs, self.order)
        while len(away := np.flatnonzero(~(np.abs(series) <= _BOUND).all(1))):
            inputs[away] = random.uniform(0, 0.5, (len(away), self.steps))
            series[away] = narma(inputs[away], self.order)
        return Drawn(inputs[..., None], series[..., None])
