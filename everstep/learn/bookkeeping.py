"""A run in its folder: when to validate, save and stop, and what is written."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from everstep.errors import CheckpointError, Diverged, RunError, counted
from everstep.learn import checkpoint, rng
from everstep.learn.checkpoint import JSON, Checkpoint, Store
from everstep.learn.learner import Learner
from everstep.learn.limits import check_lowered, limit_reached
from everstep.learn.metrics import Metrics, Unwritten
from everstep.learn.parts import joined_parts, part_of
from everstep.learn.progress import Point, Reporter, Reporting
from everstep.learn.selection import Selection, Validate, Validation, finite
from everstep.learn.settings import FitSettings
from everstep.learn.snapshot import counts_of, fault, pack, unpack
from everstep.learn.weights import (
    MODEL_FILE,
    holds,
    load_weights,
    save_weights,
    weights,
    weights_step,
    with_todays_names,
)

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the data, with fraction.
        tokens: targets seen.
        seconds: wall time over all resumed parts.
        best_valid: the lowest validation loss per target, or the best value of the measure that `select` names; None
            without validation.
        best_step: the step of `best_valid`.
        stopped_by: "max_steps", "max_epochs", "max_minutes", "early stopping" or "callback".
        metrics: the last training record of `metrics.jsonl`; empty if no step was made since the last resume.
        clocked: whether the learning rate followed the clock; the run is then not reproducible.
    """

    steps: int
    epochs: float
    tokens: int
    seconds: float
    best_valid: float | None
    best_step: int | None
    stopped_by: str
    metrics: dict[str, Any] = field(default_factory=dict)
    clocked: bool = False


class TrainingRun:
    """A learner in its folder. The caller must hold the folder's lock.

    Of several processes each has one; the leader's alone writes, and what it decides by is told to all.
    """

    def __init__(
        self,
        learner: Learner,
        out: Path,
        validate: Validate | None,
        identity: dict[str, JSON],
        recipe: dict[str, JSON],
        reporting: Reporting,
        seed: int,
    ):
        self.learner, self.world = learner, learner.world
        self.store = Store(out / CHECKPOINTS, learner.settings.keep_last)
        self._settings = learner.settings
        self._out = out
        self._validate = validate
        as_stored: tuple[dict[str, JSON], dict[str, JSON]] = json.loads(json.dumps((identity, recipe), allow_nan=False))
        self._identity, self._recipe = as_stored
        self._name = str(self._identity.get("run", ""))
        self._reporting, self._screen, self._seed = reporting, reporting.screen, seed
        self._selection = Selection(learner.settings, reporting.units.scores)
        self._saved: int | None = None  # the step of the last checkpoint
        self._saved_at = learner.seconds

    def begin(self, resume: bool) -> None:
        """Start the run, or resume it from its newest intact checkpoint; open the metrics."""
        if self.world.leads:
            self.store.clean()
        found = self._newest() if resume else None
        if found is not None:
            try:
                unpack(self._of_today(found), self.learner, self._identity, self._recipe, self._screen.say)
            except CheckpointError as error:
                raise CheckpointError(f"checkpoint {self.store.folders()[0]}: {error}") from None
            self._saved, self._saved_at = self.learner.counts.step, self.learner.seconds
            self.world.checkpoint = self.store.folder(self._saved)
            if self.world.leads:
                self._check_best()
            counts = self.learner.counts
            counts.best_valid, counts.best_step = self.world.told([counts.best_valid, counts.best_step])
            self._screen.say(f"resuming after step {self._saved}")
        else:
            if self.world.leads:
                self._check_new(resume)
                self.store.begin()
            rng.seed_all(self._seed, self.world.rank)
        if self.learner.notice:
            self._screen.say(self.learner.notice)
        self._check_warmup()
        self.learner.model.train()
        step, board = self.learner.counts.step, self._settings.tensorboard
        metrics = Metrics(self._out, step, board) if self.world.leads else Unwritten()
        self.reporter = Reporter(self._reporting, metrics, self._settings.log_every_seconds, self._point())

    def _newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, which the leader finds, or None if there has never been one."""
        found = self.store.newest(self._screen.say, self._fault) if self.world.leads else None
        name = self.world.told(None if found is None else self.store.folders()[0].name)
        return found if name is None or self.world.leads else checkpoint.load(self.store.root / name)

    def _fault(self, found: Checkpoint) -> str | None:
        return fault(self._of_today(found), self.learner.watched)

    def _of_today(self, found: Checkpoint) -> Checkpoint:
        """The checkpoint with its tensors under their current names."""
        model, of = self.learner.model, ("model", "optimizer", "average")
        named = {k: with_todays_names(model, v) if k in of else v for k, v in found.tensors.items()}
        return replace(found, tensors=named)

    def _check_new(self, resume: bool) -> None:
        """Refuse to begin where a run would be overwritten."""
        trained = (self._out / MODEL_FILE).exists()
        if trained and not self.store.folders() and not self.store.never_held():
            raise RunError(
                f"{self._out} holds a trained {MODEL_FILE}, but the checkpoints to go on from are gone from "
                f"{self.store.root}. The model can be used as it is. To train on, put them back; to train anew, use "
                "another folder"
            )
        if not resume and (trained or self.store.folders()):
            raise RunError(f"{self._out} holds a run already; resume it, or use another folder")
        if resume:
            self._screen.say(f"{self._out} has no checkpoint yet: starting from the beginning")

    def _check_warmup(self) -> None:
        warmup, steps = self._settings.warmup_steps, self._planned
        if warmup and steps is not None and warmup >= steps:
            self._screen.say(
                f"warmup_steps={warmup} is not over when this run of {counted(steps, 'step')} ends: the learning rate "
                f"hardly reaches {self._settings.learning_rate:g}; set a lower warmup_steps"
            )

    @property
    def _planned(self) -> int | None:
        """The number of steps at which `max_steps` or `max_epochs` ends the run; None if neither is set."""
        settings, limits = self._settings, []
        if settings.max_steps is not None:
            limits.append(settings.max_steps)
        if settings.max_epochs is not None:
            limits.append(settings.max_epochs * -(-len(self.learner.batches) // settings.accumulate))
        return min(limits, default=None)

    def _check_best(self) -> None:
        """Make `model.safetensors` match the resumed checkpoint: a crash may have left a later file, or none."""
        counts, path = self.learner.counts, self._out / MODEL_FILE
        if counts.best_step is None:
            return
        try:
            best = self._of_today(checkpoint.load(self.store.folder(counts.best_step)))
            held = best.tensors["model"] | best.tensors.get("average", {})
            tensors = {name: held[name] for name in weights(self.learner.model)}
        except (CheckpointError, KeyError):
            if weights_step(path, self._name) != counts.best_step:
                self._screen.say(
                    f"the best weights (step {counts.best_step}) are lost; the next validation starts anew"
                )
                counts.best_valid = counts.best_step = None
            return
        if (step := weights_step(path)) == counts.best_step:
            if holds(path, tensors, self.learner.model, self._name):
                return
            self._screen.say(f"{path} is not what was saved at step {step}; written again from its checkpoint")
        save_weights(path, tensors, counts.best_step, self._name)

    def step(self) -> None:
        """One optimizer step.

        Raises:
            Diverged: naming the last checkpoint.
        """
        counts = self.learner.counts
        clocked = counts.clocked
        try:
            result = self.learner.step()
        except Diverged as error:
            self._diverged(str(error))
        if counts.clocked and not clocked and (self._settings.max_steps or self._settings.max_epochs):
            self._screen.say(
                f"max_minutes will end this run before its steps do: the schedule follows the clock from step "
                f"{counts.step} on, to end in time, so that another run will differ"
            )
        self.reporter.step(self._point(), *result)

    def _diverged(self, message: str) -> NoReturn:
        """Set aside the checkpoints from this step on, which lead to the divergence, and raise."""
        self.reporter.flush(self._point())
        back = ""
        if self.world.leads:
            back = _way_back(self.store.diverged(self.learner.counts.step), self.store.folders())
        raise Diverged(f"{message}; {self.world.told(back)}") from None

    def agree(self, caught: int | None) -> int | None:
        """Agree on the time and on the callbacks' wish to stop; the signal that any process has caught, or None."""
        number, stop = self.learner.exchanged([caught or 0, bool(self.reporter.stop)])
        self.reporter.stop = "callback" if stop else ""
        return int(number) or None

    def limit_reached(self) -> str:
        """The limit that has been reached, or ""."""
        return limit_reached(self._settings, self.learner.counts, self.learner.seconds)

    def stalled(self) -> bool:
        """Whether the last `patience` validations brought no improvement."""
        patience = self._settings.patience
        return patience is not None and self.learner.counts.since_best >= patience

    def _at(self, every: int | None) -> bool:
        counts = self.learner.counts
        return counts.step > 0 and (counts.index == 0 if every is None else counts.step % every == 0)

    def validation_due(self, last: bool) -> bool:
        """Whether to validate now: the step is due or `last`, and has not been validated."""
        if self._validate is None or self.learner.counts.validated == self.learner.counts.step:
            return False
        return self._at(self._settings.validate_every) or last

    def checkpoint_due(self) -> bool:
        """Whether to save now: the step or the time is due, and the step has not been saved."""
        settings = self._settings
        late = self.learner.seconds - self._saved_at >= 60 * settings.checkpoint_minutes
        return self._saved != self.learner.counts.step and (
            late or self._at(settings.checkpoint_every or settings.validate_every)
        )

    def validate(self) -> None:
        """Validate, update schedule, averaging and early stopping, and keep the weights if they are the best so far.

        Raises:
            Diverged: the result is not finite.
        """
        assert self._validate is not None
        learner, counts = self.learner, self.learner.counts
        self.reporter.flush(self._point())
        with rng.untouched(), learner.averaging.applied():
            learner.model.eval()
            found = self._found(self._validate)
            learner.model.train()
            if not finite(found):
                name, value = (found.name, found.value) if math.isfinite(found.loss) else ("loss", found.loss)
                self._diverged(f"the validation {name} at step {counts.step} is {value}; try a lower learning_rate")
            best = self._selection.better(found, counts.best_valid, counts.best_loss)
            if best:
                if self.world.leads:
                    save_weights(self._out / MODEL_FILE, weights(learner.model), counts.step, self._name)
                counts.best_valid, counts.best_loss, counts.best_step = found.cost, found.loss, counts.step
        counts.valid, counts.validated = found.cost, counts.step
        counts.since_best = 0 if best else counts.since_best + 1
        learner.plateau.observe(found.cost, self._settings.plateau_factor, self._settings.plateau_patience)
        if learner.averaging.observe(found.cost):
            self._screen.say(f"step {counts.step}: averaging starts")
        self.learner.exchanged([])  # so that the time of the validation is not that of later steps
        self.reporter.validation(self._point(), found, best)
        self.agree(None)

    def _found(self, validate: Validate) -> Validation:
        """The leader's validation. What it fits on the way, such as a temperature, is in the buffers of all."""
        model = self.learner.model
        found = self._selection.read(validate(model)) if self.world.leads else None
        told = Validation(**self.world.told(found and asdict(found)))
        self.world.copy_from_leader(model.buffers())
        return told if found is None else found

    def save(self) -> Path:
        """Save a checkpoint unless this step has one, and return its folder.

        If a signal arrives between a step and its validation, the checkpoint precedes the validation, which is made
        up for at resume.

        Raises:
            Diverged: weights, averages or the optimizer's state are not finite.
        """
        step = self.learner.counts.step
        if self._saved == step:
            return self.store.folder(step)
        packed = pack(self.learner, self._identity, self._recipe)
        if found := self._fault(packed):
            self._diverged(f"training diverged at step {step}: {found} after it. {self.learner.advice()}")
        folder = self._written(step, packed)
        self._saved, self._saved_at = step, self.learner.seconds
        return folder

    def _written(self, step: int, packed: Checkpoint) -> Path:
        """Write a checkpoint with the parts of all processes, and return its folder."""
        world, best = self.world, self.learner.counts.best_step
        if world.size > 1 and (parts := world.gathered(part_of(packed, self.learner.model))):
            packed = joined_parts(packed, parts)
        if world.leads:
            self.store.save(step, packed, best)
        world.told(step)  # the others wait until it is there
        world.checkpoint = self.store.folder(step)
        return world.checkpoint

    def finish(self, stopped_by: str) -> FitResult:
        """Save a last checkpoint, load the best weights into the model, and return the result."""
        learner, counts = self.learner, self.learner.counts
        self.save()
        self.reporter.flush(self._point())
        warmup = self._settings.warmup_steps
        if warmup and counts.step <= warmup and (self._planned is None or warmup < self._planned):
            self._screen.say(
                f"warmup_steps={warmup} was not over when the run ended after {counted(counts.step, 'step')}; set a "
                "lower one"
            )
        path = self._out / MODEL_FILE
        if counts.best_step is None and self.world.leads:
            with learner.averaging.applied():
                save_weights(path, weights(learner.model), counts.step, self._name)
        self.world.told(counts.step)
        load_weights(learner.model, path)
        return FitResult(
            steps=counts.step,
            epochs=learner.epoch,
            tokens=counts.tokens,
            seconds=learner.seconds,
            best_valid=None if counts.best_valid is None else self._selection.value(counts.best_valid),
            best_step=counts.best_step,
            stopped_by=stopped_by,
            metrics=self.reporter.last,
            clocked=counts.clocked,
        )

    def _point(self) -> Point:
        learner, counts = self.learner, self.learner.counts
        return Point(counts.step, learner.epoch, counts.tokens, learner.seconds, learner.used)


def check_resumable(out: Path, settings: FitSettings) -> None:
    """Refuse settings that would end a resumed run at once, before any file in the folder is changed.

    Raises:
        ConfigError: a limit is lower than the progress of the newest intact checkpoint.
    """
    for folder in Store(out / CHECKPOINTS, settings.keep_last).folders():
        try:
            data = checkpoint.load_data(folder)
            before, counts = data.get("settings"), counts_of(data)
        except CheckpointError:  # resuming reports it and takes an earlier one
            continue
        check_lowered(settings, before if isinstance(before, dict) else {}, counts)
        return


def _way_back(aside: list[Path], good: list[Path]) -> str:
    """Advice after a divergence. `aside`: checkpoints renamed; `good`: those left, newest first."""
    names = ", ".join(folder.name for folder in aside)
    moved = f" ({names} led to it and was set aside)" if aside else ""
    if not good:
        if not aside:
            return "no checkpoint had been saved yet"
        return f"no good checkpoint is left{moved}: train anew in another folder, with a lower learning_rate"
    further = f"; from {good[1].name}, if {good[0].name} is deleted too" if len(good) > 1 else ""
    return (
        f"the last good checkpoint is {good[0]}{moved}. Resuming goes on from it{further}. With the same settings it "
        "would diverge again: lower learning_rate first"
    )
