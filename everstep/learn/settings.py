"""Settings of `fit`, which are also the `train` section of a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from everstep.sections import Count, Names, NonNegative, Positive, Probability, Section, Whole

OptimizerName = Literal["adamw", "sgd", "rmsprop", "adagrad"]
ScheduleName = Literal["constant", "cosine", "linear", "step", "plateau"]
AveragingName = Literal["none", "ema", "nt-asgd"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class FitSettings(Section):
    """Settings of `fit`. At least one of `max_steps`, `max_epochs`, `max_minutes` is needed; the first reached stops.

    Raises:
        ConfigError: unknown keys, or values out of range; the message names them.

    >>> FitSettings(max_steps=100, learning_rate=0.01).optimizer
    'adamw'
    """

    batch_size: Count = 32
    """rows in a batch; used by the code that makes batches"""
    optimizer: OptimizerName = "adamw"
    """adamw (Loshchilov and Hutter 2019), sgd, rmsprop (Hinton 2012) or adagrad (Duchi 2011)"""
    learning_rate: Positive = 0.002
    """η, before the schedule is applied"""
    momentum: Probability = 0.0
    """momentum of sgd and rmsprop"""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """β₁ and β₂ of adamw"""
    weight_decay: NonNegative = 0.0
    """λ, for parameters of two or more dimensions except biases; decoupled for adamw, in the gradient for others"""
    schedule: ScheduleName = "cosine"
    """schedule of the learning rate: constant, cosine or linear (down to min_learning_rate), step, plateau"""
    warmup_steps: Whole = 0
    """number of first steps over which the rate grows linearly"""
    constant_epochs: Count = 1
    """step: number of epochs at learning_rate; then the rate is divided by decay at each epoch"""
    decay: float = Field(2.0, ge=1)
    """step: divisor of the rate"""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """plateau: factor of the rate"""
    plateau_patience: Count = 2
    """plateau: validations in a row without a new best before the rate is reduced"""
    min_learning_rate: NonNegative = 0.0
    """last value of cosine and linear, lower bound of step and plateau"""
    l2: NonNegative = 0.0
    """λ: λ·w is added to the gradient of the weights in l2_on"""
    l2_on: Names = "*"
    """names of parameters, or a list; * matches anything"""
    clip_value: Positive | None = None
    """bound of each entry of the gradient; applied before fixed_norm and clip_norm"""
    fixed_norm: Positive | None = None
    """the gradient is scaled to this norm at every step"""
    gradient_noise: NonNegative = 0.0
    """η: noise of variance η / (1 + step)^γ is added to the gradient (Neelakantan 2015)"""
    gradient_noise_decay: NonNegative = 0.55
    """γ of gradient_noise"""
    clip_norm: Positive | None = 1.0
    """τ: gradients with a larger global norm are scaled down to it; null: off"""
    accumulate: Count = 1
    """batches per update"""
    precision: Precision = "auto"
    """precision of matrix products: float32, bfloat16 (autocast), or auto: bfloat16 where it is native and pays"""
    averaging: AveragingName = "none"
    """averaging of the weights: none, ema, or nt-asgd (Merity 2018)"""
    ema_decay: Probability = 0.999
    """decay of ema per step"""
    nt_asgd_patience: Count = 5
    """n of nt-asgd, in validations"""
    patience: Count | None = None
    """early stopping: validations in a row without a new best; null: never"""
    select: str | None = None
    """the validation measure that selects the best weights, such as accuracy; null: the loss"""
    select_best: Literal["auto", "lowest", "highest"] = "auto"
    """whether the lowest or the highest value of `select` is best; auto: as the job declares"""
    max_steps: Count | None = None
    """updates; one of max_steps, max_epochs, max_minutes is needed, and the first reached ends the run"""
    max_epochs: Count | None = None
    """passes over the training data"""
    max_minutes: Positive | None = None
    """wall time over all resumed parts; cosine and linear follow it if it ends the run, which then differs each time"""
    validate_every: Count | None = None
    """steps between validations; null: every epoch. The last step is always validated"""
    checkpoint_every: Count | None = None
    """steps between checkpoints; null: at each validation"""
    checkpoint_minutes: Positive = 5.0
    """minutes after which a checkpoint is saved in any case"""
    keep_last: Count = 2
    """number of newest checkpoints kept, besides the best one"""
    log_every_seconds: NonNegative = 5.0
    """seconds between two records of metrics.jsonl"""
    tensorboard: bool = False
    """also write RUN/tensorboard"""
    threads: int | None = Field(
        None, ge=1, le=max(1024, os.cpu_count() or 1)
    )  # with tens of thousands, OpenMP aborts the process
    """threads of PyTorch; null: PyTorch's default"""
    device: Device = "auto"
    """device of the model: cpu, cuda, mps, or auto: cuda or mps if present"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Pairs of keys and messages for combinations that are not allowed."""
        if self.max_steps is None and self.max_epochs is None and self.max_minutes is None:
            yield "", "expected at least one of max_steps, max_epochs, max_minutes; got none, so training would not end"
        if self.fixed_norm is not None and self.clip_norm is not None and self.fixed_norm > self.clip_norm:
            yield (
                "fixed_norm",
                f"expected at most clip_norm ({self.clip_norm:g}), which comes after it; got {self.fixed_norm:g}; set "
                "clip_norm=null",
            )
        if self.min_learning_rate > self.learning_rate:
            most, got = self.learning_rate, self.min_learning_rate
            yield "min_learning_rate", f"expected at most learning_rate ({most:g}); got {got:g}"
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            yield "momentum", f"expected optimizer sgd or rmsprop beside it; got {self.optimizer}"

    @property
    def needs_validation(self) -> dict[str, str]:
        """The settings that need a validation, each with the advice for a run without one."""
        needing = {
            "schedule: plateau": (self.schedule == "plateau", "schedule=cosine"),
            "averaging: nt-asgd": (self.averaging == "nt-asgd", "averaging=ema"),
            "patience": (self.patience is not None, "patience=null"),
            "select": (self.select is not None, "select=null"),
        }
        return {name: instead for name, (needed, instead) in needing.items() if needed}
