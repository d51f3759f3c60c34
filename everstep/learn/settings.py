"""How to fit: one frozen value, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from everstep.errors import ConfigError

OptimizerName = Literal["adamw", "sgd", "rmsprop", "adagrad"]
ScheduleName = Literal["constant", "cosine", "step", "plateau"]
AveragingName = Literal["none", "ema", "nt-asgd"]
Precision = Literal["float32", "bfloat16", "auto"]

_CHOICES = {
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(ScheduleName),
    "averaging": get_args(AveragingName),
    "precision": get_args(Precision),
}
_AT_LEAST_ONE = ("accumulate", "keep_last", "plateau_patience", "nt_asgd_patience", "constant_epochs")
_AT_LEAST_ONE_OR_NONE = ("patience", "max_steps", "max_epochs", "validate_every", "checkpoint_every")
_NOT_NEGATIVE = ("weight_decay", "warmup_steps", "log_every_seconds", "min_learning_rate", "seed")
_FRACTIONS = ("momentum", "ema_decay")


@dataclass(frozen=True)
class FitSettings:
    """Settings of `fit`. At least one of `max_steps`, `max_epochs`, `max_minutes` is required; the first reached stops.

    Attributes:
        optimizer: "adamw" (Loshchilov and Hutter 2019), "sgd", "rmsprop" (Hinton 2012) or "adagrad" (Duchi 2011).
        learning_rate: η, before the schedule.
        momentum: of sgd and rmsprop.
        betas: β₁, β₂ of adamw.
        weight_decay: λ, for parameters of two or more dimensions that are no biases; decoupled for adamw (w shrinks by
            ηλw), added to the gradient (λw) for the others.
        schedule: "constant", "cosine", "step" or "plateau"; see `everstep.learn.schedules`.
        warmup_steps: η grows linearly over that many first steps, under every schedule.
        constant_epochs: "step": number of first epochs at the full rate.
        decay: "step": what the rate is divided by at each epoch after those.
        plateau_factor: "plateau": what the rate is multiplied by.
        plateau_patience: "plateau": after that many validations in a row without a new best.
        min_learning_rate: absolute (not a fraction): where cosine ends, and the floor of "step" and "plateau".
        clip_norm: τ of `clip_by_global_norm`; None is off.
        accumulate: batches per optimizer step.
        precision: "float32", "bfloat16" (autocast) or "auto" (bfloat16 where the machine has it natively).
        averaging: "none", "ema" or "nt-asgd"; see `everstep.learn.averaging`.
        ema_decay: of "ema".
        nt_asgd_patience: n of "nt-asgd", in validations.
        patience: stop after that many validations in a row without a new best; None never stops early.
        max_steps: optimizer steps.
        max_epochs: passes over the data.
        max_minutes: wall time, over all resumed parts, validation included. Where it ends a run, another one differs.
        validate_every: steps; None is at the end of each epoch. There is always one at the end of the run.
        checkpoint_every: steps; None is at each point of validation (also if there is no `validate`).
        checkpoint_minutes: also one whenever that much wall time has passed since the last.
        keep_last: checkpoints kept, besides the best one.
        log_every_seconds: time between two records of `metrics.jsonl`.
        tensorboard: also write `RUN/tensorboard`.
        seed: of every random generator, at the start of the run.

    Raises:
        ConfigError: a value that cannot be used, by name.

    Example:
        >>> FitSettings(max_steps=100, learning_rate=0.01).optimizer
        'adamw'
    """

    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    constant_epochs: int = 4
    decay: float = 2.0
    plateau_factor: float = 0.5
    plateau_patience: int = 1
    min_learning_rate: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    averaging: AveragingName = "none"
    ema_decay: float = 0.999
    nt_asgd_patience: int = 5
    patience: int | None = None
    max_steps: int | None = None
    max_epochs: int | None = None
    max_minutes: float | None = None
    validate_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_minutes: float = 5.0
    keep_last: int = 2
    log_every_seconds: float = 10.0
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            expected = self._expected(field.name)
            if expected:
                raise ConfigError(f"{field.name} must be {expected}, got {getattr(self, field.name)!r}")
        if self.max_steps is None and self.max_epochs is None and self.max_minutes is None:
            raise ConfigError("nothing limits the training: give at least one of max_steps, max_epochs, max_minutes")

    def _expected(self, name: str) -> str:
        """What was expected of the setting `name`, or "" where its value can be used."""
        value = getattr(self, name)
        if name in _CHOICES:
            return "" if value in _CHOICES[name] else "one of " + ", ".join(_CHOICES[name])
        if name in _AT_LEAST_ONE:
            return "" if value >= 1 else "at least 1"
        if name in _AT_LEAST_ONE_OR_NONE:
            return "" if value is None or value >= 1 else "at least 1, or null"
        if name in _NOT_NEGATIVE:
            if name == "min_learning_rate" and value > self.learning_rate:
                return f"at most learning_rate ({self.learning_rate})"
            return "" if 0 <= value < math.inf else "0 or more"
        if name in _FRACTIONS:
            return "" if 0 <= value < 1 else "0 or more and below 1"
        return self._expected_otherwise(name, value)

    def _expected_otherwise(self, name: str, value: object) -> str:
        if name == "betas":
            return "" if len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas) else "two numbers in [0, 1)"
        if name == "decay":
            return "" if self.decay >= 1 else "1 or more"
        if name == "plateau_factor":
            return "" if 0 < self.plateau_factor < 1 else "between 0 and 1"
        if name in ("learning_rate", "clip_norm", "max_minutes", "checkpoint_minutes"):
            optional = name in ("clip_norm", "max_minutes")
            good = (value is None and optional) or (isinstance(value, int | float) and 0 < value < math.inf)
            return "" if good else "above 0" + (", or null" if optional else "")
        return ""
