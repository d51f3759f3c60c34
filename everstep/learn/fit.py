"""`fit`: training that can be stopped anywhere and resumed as if it had not been."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from everstep.data.batches import Batches
from everstep.errors import ConfigError, Interrupted
from everstep.learn.bookkeeping import FitResult, Run
from everstep.learn.checkpoint import JSON
from everstep.learn.learner import Learner
from everstep.learn.listed import as_batches
from everstep.learn.objective import Objective
from everstep.learn.optim import MakeOptimizer
from everstep.learn.progress import Callback, Reporting, Screen, Units
from everstep.learn.rules import Rule
from everstep.learn.selection import Validate
from everstep.learn.settings import FitSettings
from everstep.learn.signals import StopSignals
from everstep.learn.update_rules import update_rules
from everstep.storage.run_lock import RunLock


def fit(
    model: nn.Module,
    objective: Objective[Any],
    batches: Batches[Any] | Iterable[Any],
    settings: FitSettings,
    *,
    out: str | Path,
    validate: Validate | None = None,
    rules: Sequence[Rule] = (),
    optimizer: MakeOptimizer | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    units: Units = Units(),  # noqa: B008 - frozen
    resume: bool = False,
    identity: dict[str, JSON] | None = None,
    recipe: dict[str, JSON] | None = None,
    resume_command: str = "",
    log: Callable[[str], None] | None = None,
) -> FitResult:
    """Minimise `objective` over `batches` until the first limit of `settings`, and leave `model` at its best.

    One step: g = ∇ Σ total / N over N targets, the `rules` in their order, a check that all is finite, clipping to
    `clip_norm`, the optimizer. At the end, `OUT/model.safetensors` and `model` hold the weights of the lowest
    validation (the last ones if there is no `validate`), averaged if averaging is on. A run that steps or epochs end
    can be killed at any moment and resumed, and gives the same bits on a CPU, at an equal number of threads (a GPU may
    add in another order each time). `max_minutes` beside them changes nothing unless it will end the run; then
    `schedule="cosine"` follows the clock, which is told.

    When resuming, the nest of the carried state is found by running `objective` once on one batch, without effect.

    Args:
        model: trained in place, on the device it is on.
        objective: see `everstep.learn.Objective`.
        batches: see `everstep.data.batches`; or a list or a `DataLoader` of batches, each with a `count` and a `to`.
            A `DataLoader`'s order is its own, so that a run with one is not resumed exactly.
        settings: see `FitSettings`.
        out: the run folder: `checkpoints/`, `metrics.jsonl`, `model.safetensors`.
        validate: of the model on held-out data: the mean loss per target, or measures by name, of which "loss" is one;
            `settings.select` says which decides. Called in eval mode, under the average if one is active, and without
            effect on any random generator.
        rules: run after backward, after those of `settings` and before clipping.
        optimizer: makes any torch optimizer of parameters, such as `torch.optim.RAdam`; None: `settings.optimizer`.
            Its learning rate is set by the schedule at every step; its state, tensors and numbers, is in checkpoints.
        callbacks: called with each record of `metrics.jsonl`; True ends the training.
        seed: of every random generator, at the start of the run.
        units: what targets are, what their loss is in, and of which measures the highest is best.
        resume: go on from the newest whole checkpoint in `out`; from the start, if there has never been one.
        identity: what the run is of (a digest of the data, …); must be equal when resuming. Its entry "run", a text,
            is written into the metadata of `model.safetensors`, too; see `load_weights`.
        recipe: what else it is made by besides `settings` (dropouts, …); what differs when resuming is told.
        resume_command: what to tell the user to type after an interruption.
        log: takes each line for the user; None is stderr, with a live line on a terminal.

    Raises:
        Diverged: NaN or infinity in a loss, a gradient or a validation; the last checkpoint is named.
        Interrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint saved.
        CheckpointError: `resume`, and every checkpoint is damaged.
        RunError: the folder is in use, cannot be written, has a run already (without `resume`) or another run (with).
        ConfigError: settings that need a `validate` came without one, or `select` a measure that it does not give; an
            `optimizer` that cannot be used.
        TypeError, ValueError: batches, or what `validate` gives, are none; `objective` yields no `Loss` of the right
            form, which is shown, or a batch counts no targets.

    Example:
        >>> import tempfile, torch
        >>> from everstep.data.batches import TokenBatch
        >>> from everstep.learn import Loss
        >>> class Ones:
        ...     batch_size, carries_state = 2, False
        ...     def __len__(self): return 1
        ...     def batch(self, epoch, index):
        ...         ones = torch.ones(2, 3, dtype=torch.int64)
        ...         return TokenBatch(ones, ones, None, None, 0, 3)
        >>> def objective(model, batch, state):
        ...     nats = nn.functional.cross_entropy(model(batch.inputs).mT, batch.targets, reduction="none").sum(1)
        ...     yield Loss(nats, nats.detach(), ())
        >>> settings = FitSettings(max_steps=3, learning_rate=0.1)
        >>> out = Path(tempfile.mkdtemp())
        >>> fit(nn.Embedding(2, 2), objective, Ones(), settings, out=out, log=lambda line: None).stopped_by
        'max_steps'
    """
    _check(settings, validate)
    out = Path(out)
    screen = Screen(log)
    try:
        with RunLock(out), StopSignals(screen.say) as signals:
            every = [*update_rules(model, settings, seed), *rules]
            learner = Learner(model, objective, as_batches(batches, screen.say), settings, every, optimizer)
            reporting = Reporting(screen, units, callbacks)
            run = Run(learner, out, validate, identity or {}, recipe or {}, reporting, seed)
            run.begin(resume)
            try:
                stopped_by = _loop(run, signals, resume_command)
                result = run.finish(stopped_by)
            finally:
                run.reporter.close()
            if signals.caught is not None:
                raise Interrupted(f"training had just ended ({stopped_by}) when the signal came", signals.caught)
            return result
    finally:
        screen.close()


def _check(settings: Any, validate: Validate | None) -> None:
    if not isinstance(settings, FitSettings):
        given = type(settings).__name__
        raise TypeError(f"fit: settings should be a FitSettings, such as FitSettings(max_steps=1000), but is {given}")
    for name, instead in settings.needs_validation.items() if validate is None else ():
        raise ConfigError(f"{name} looks at the validation, but there is no validation data; give some, or {instead}")


def _loop(run: Run, signals: StopSignals, resume_command: str) -> str:
    """Steps, with whatever is due between them. What is due follows from the counts, so a resume finds it again.

    Returns what the run was stopped by.
    """
    while True:
        if signals.caught is not None:
            folder = run.save()
            then = f"; resume with: {resume_command}" if resume_command else ""
            name = signal.Signals(signals.caught).name
            raise Interrupted(
                f"stopped by {name} after step {run.learner.counts.step}, saved in {folder}{then}", signals.caught
            )
        limit = run.limit_reached() or run.reporter.stop
        if run.validation_due(last=bool(limit)):
            run.validate()
        if limit or run.stalled():
            return limit or "early stopping"
        if run.checkpoint_due():
            run.save()
        run.step()
