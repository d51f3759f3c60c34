"""`fit`: training that can be interrupted at any moment and resumed with identical results."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from everstep.data.batches import Batches
from everstep.errors import ConfigError, Interrupted
from everstep.learn.bookkeeping import FitResult, TrainingRun
from everstep.learn.checkpoint import JSON
from everstep.learn.joining import joined
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
from everstep.learn.weights import all_tensors
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
    """Minimise `objective` over `batches` until the first limit of `settings`; `model` ends with its best weights.

    One step: g = ∇ Σ total / N over N targets, the `rules` in order, a check that g is finite, clipping to `clip_norm`,
    the optimizer. At the end, `OUT/model.safetensors` and `model` hold the weights of the best validation (the last
    ones without `validate`), averaged if averaging is on.

    A run limited by steps or epochs can be killed at any moment and resumed; on a CPU with as many threads the result
    is equal bit for bit. With `max_minutes`, schedules follow the clock once it is about to end the run. In several
    processes (`torchrun`) all call `fit` alike; `batches` must be `everstep.data.batches.Divides`, and the first one
    validates, writes `out`, and calls `callbacks` and `log` (docs/many_processes.md). A model that is `MovesItself`
    changes its own weights by each batch; `objective` then serves validations alone.

    Args:
        model: trained in place, on its device.
        objective: see `everstep.learn.Objective`; at resume it runs once without effect, for the form of the state.
        batches: see `everstep.data.batches`; or a list or a `DataLoader` of batches, each with `count` and `to`
            (a `DataLoader` draws its own order: such a run does not resume exactly).
        settings: see `FitSettings`.
        out: the run folder: `checkpoints/`, `metrics.jsonl`, `model.safetensors`.
        validate: the mean loss per target of the model on held-out data, or a dict of measures that includes "loss", of
            which `settings.select` decides. Called in eval mode, with averaged weights if there are any.
        rules: run after backward and after the rules of `settings`, before clipping.
        optimizer: from parameter groups to a torch optimizer, such as `torch.optim.RAdam`; None: `settings.optimizer`.
            The schedule sets its learning rate; checkpoints hold its state, which must be tensors and numbers.
        callbacks: called with each record of `metrics.jsonl`; returning True ends the training.
        seed: seeds every random generator at the start of the run.
        units: the names of targets and loss unit, and the measures of which the highest is best.
        resume: continue from the newest intact checkpoint in `out`, or from the start if there has never been one.
        identity: what must be equal at resume (a digest of the data, …); "run" also goes into `model.safetensors`.
        recipe: further options besides `settings` (dropouts, …); differences at resume are reported.
        resume_command: the command shown to the user after an interruption.
        log: receives each line for the user; None writes to stderr, with a live line on a terminal.

    Raises:
        Diverged: NaN or infinity in a loss, a gradient or a validation; the message names the last checkpoint.
        Interrupted: SIGINT or SIGTERM; the step was finished and a checkpoint saved.
        CheckpointError: at resume, every checkpoint is damaged.
        RunError: the folder is in use, cannot be written, or holds a run (at resume: another run); or a process of the
            training is lost. The message names the last checkpoint.
        ConfigError: `validate`, the measure `select`, or the division of `model` or `batches` is missing; `optimizer`
            cannot be used.
        TypeError, ValueError: `batches`, or what `validate` or `objective` gives, has the wrong form; no targets.

    Example:
        >>> import tempfile, torch
        >>> from everstep.data.batches import TokenBatch
        >>> from everstep.learn import Loss
        >>> ones = torch.ones(2, 3, dtype=torch.int64)
        >>> def objective(model, batch, state):
        ...     nats = nn.functional.cross_entropy(model(batch.inputs).mT, batch.targets, reduction="none").sum(1)
        ...     yield Loss(nats, nats.detach())
        >>> batches, settings = [TokenBatch(ones, ones, None, None, 0, 3)], FitSettings(max_steps=3, learning_rate=0.1)
        >>> out = tempfile.mkdtemp()
        >>> fit(nn.Embedding(2, 2), objective, batches, settings, out=out, log=lambda line: None).stopped_by
        'max_steps'
    """
    _check(settings, validate)
    out = Path(out)
    with joined() as world:
        screen = Screen(log if world.leads else _silent)
        try:
            with RunLock(out) if world.leads else nullcontext(), StopSignals(screen.say) as signals:
                world.resume_command = resume_command
                world.copy_from_leader(all_tensors(model).values())
                every = [*update_rules(model, settings, seed), *rules]
                learner = Learner(model, objective, as_batches(batches, screen.say), settings, every, optimizer, world)
                reporting = Reporting(screen, units, callbacks if world.leads else ())
                run = TrainingRun(learner, out, validate, identity or {}, recipe or {}, reporting, seed)
                run.begin(resume)
                try:
                    with world.watched():
                        stopped_by = _loop(run, signals, resume_command)
                        result = run.finish(stopped_by)
                        caught = run.agree(signals.caught)
                finally:
                    run.reporter.close()
                if caught is not None:
                    raise Interrupted(f"training had just ended ({stopped_by}) when the signal came", caught)
                return result
        finally:
            screen.close()


def _silent(line: str) -> None:
    del line  # the leader says the same


def _check(settings: Any, validate: Validate | None) -> None:
    if not isinstance(settings, FitSettings):
        given = type(settings).__name__
        raise TypeError(f"fit: settings should be a FitSettings, such as FitSettings(max_steps=1000), but is {given}")
    for name, instead in settings.needs_validation.items() if validate is None else ():
        raise ConfigError(f"{name} looks at the validation, but there is no validation data; give some, or {instead}")


def _loop(run: TrainingRun, signals: StopSignals, resume_command: str) -> str:
    """Run steps, validations and checkpoints until a limit; return what stopped the run.

    What is due follows from the counts alone, so that a resumed run does the same.
    """
    while True:
        if (caught := run.agree(signals.caught)) is not None:
            folder = run.save()
            then = f"; resume with: {resume_command}" if resume_command else ""
            name = signal.Signals(caught).name
            raise Interrupted(
                f"stopped by {name} after step {run.learner.counts.step}, saved in {folder}{then}", caught
            )
        limit = run.limit_reached() or run.reporter.stop
        if run.validation_due(last=bool(limit)):
            run.validate()
        if ended := limit or run.reporter.stop:  # a callback may have seen the validation
            return ended
        if run.stalled():
            return "early stopping"
        if run.checkpoint_due():
            run.save()
        run.step()
