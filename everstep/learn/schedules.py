"""The learning rate as a pure function of step, epoch and progress of the run.

`progress` is the used share of `max_steps` or `max_epochs`, whichever is larger. So the learning rate depends on the
step alone and runs are reproducible bit for bit, even if `max_minutes` is set too. If `max_minutes` is the only limit,
"cosine" and "linear" follow the clock. If it will end the run before its steps do (known after a tenth of the time),
they follow the clock from then on, so that the schedule ends with the run on any machine. Such runs are not
reproducible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from everstep.learn.settings import FitSettings


def warmup(step: int, steps: int) -> float:
    """min(1, (k + 1) / w): the factor at step k (from 0) in a linear warm-up of w = `steps` steps.

    Example:
        >>> [warmup(k, 4) for k in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def cosine(progress: float, high: float, low: float) -> float:
    """η(p) = η_min + ½ (η_max − η_min)(1 + cos πp): from `high` at p = 0 to `low` at p = 1.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.

    Example:
        >>> cosine(0.5, 1.0, 0.0)
        0.5
    """
    return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * progress))


def linear(progress: float, high: float, low: float) -> float:
    """η(p) = η_max − (η_max − η_min) p: from `high` at p = 0 to `low` at p = 1.

    Example:
        >>> linear(0.25, 1.0, 0.0)
        0.75
    """
    return high - (high - low) * progress


def step_decay(epoch: int, constant_epochs: int, decay: float) -> float:
    """d^(−max(0, e − k + 1)): 1 for the first k epochs (e from 0), then divided by d at each epoch.

    Source: Zaremba, Sutskever and Vinyals, "Recurrent Neural Network Regularization", 2014, section 4.1.

    Example:
        >>> [step_decay(e, 2, 2.0) for e in range(4)]
        [1.0, 1.0, 0.5, 0.25]
    """
    return float(decay ** -max(0, epoch - constant_epochs + 1))


@dataclass
class Plateau:
    """A learning-rate factor that shrinks when validation stops improving; stored in checkpoints.

    Attributes:
        factor: multiplies the learning rate.
        best: lowest validation cost so far.
        bad: validations since the last best or the last reduction.
    """

    factor: float = 1.0
    best: float | None = None
    bad: int = 0

    def observe(self, valid: float, cut: float, patience: int) -> None:
        """Record one validation; after `patience` in a row without a new best, multiply `factor` by `cut`."""
        if self.best is None or valid < self.best:
            self.best, self.bad = valid, 0
            return
        self.bad += 1
        if self.bad >= patience:
            self.factor, self.bad = self.factor * cut, 0


def learning_rate(settings: FitSettings, step: int, epoch: int, progress: float, plateau: float = 1.0) -> float:
    """The learning rate of step `step` (from 0) in epoch `epoch` (from 0) at `progress` in [0, 1].

    η = warmup(k) · s, with s = η₀ ("constant"), cosine(p, η₀, η_min) ("cosine"), linear(p, η₀, η_min) ("linear"), or
    max(η_min, η₀ · f) with f = step_decay(e) ("step") or the factor of `Plateau` ("plateau").

    Example:
        >>> learning_rate(FitSettings(max_steps=10, schedule="cosine", learning_rate=2.0), 5, 0, 0.5)
        1.0
    """
    top, low = settings.learning_rate, settings.min_learning_rate
    if settings.schedule == "cosine":
        rate = cosine(progress, top, low)
    elif settings.schedule == "linear":
        rate = linear(progress, top, low)
    elif settings.schedule == "step":
        rate = max(low, top * step_decay(epoch, settings.constant_epochs, settings.decay))
    elif settings.schedule == "plateau":
        rate = max(low, top * plateau)
    else:
        rate = top
    return rate * warmup(step, settings.warmup_steps)
