"""Training a recipe into a run folder, resuming it, and loading it."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everstep.errors import ConfigError, Diverged, Interrupted, RunError, counted
from everstep.learn import FitResult, fit, load_weights, rng
from everstep.learn.bookkeeping import check_resumable
from everstep.learn.denormals import flushed_denormals
from everstep.learn.devices import pick_device
from everstep.learn.joining import joined
from everstep.learn.listed import as_batches
from everstep.learn.optim import sparse_gradients
from everstep.learn.progress import Callback, Units
from everstep.learn.selection import LOSS, Selection
from everstep.learn.update_rules import update_rules
from everstep.learn.weights import MODEL_FILE, save_weights, weights
from everstep.learn.world import check_divisible
from everstep.parameters import device_of, parameter_count
from everstep.processes import launched, rank, world_size
from everstep.runs import card
from everstep.runs.begun_vectors import begin_embedding
from everstep.runs.capabilities import HasRivals
from everstep.runs.data_frames import GivenFrames
from everstep.runs.folder import RECIPE, begun
from everstep.runs.model_size import check_fits
from everstep.runs.opening import check_recipe, digests, opened
from everstep.runs.recipe import Recipe
from everstep.runs.recipe_files import changed, flat, listed_overrides, load_task, to_yaml
from everstep.runs.registry import find_task
from everstep.runs.run import Run, warn
from everstep.runs.run_names import RAISED, name_of, run_name
from everstep.runs.starting_weights import FUNCTION, check_start, fill_from
from everstep.runs.task import Task, trusting
from everstep.runs.text_data import check_files, file_keys, say_trained_files, with_absolute_paths
from everstep.runs.user_code import UserCode
from everstep.runs.workers import stoppable
from everstep.sections import Section
from everstep.storage import files
from everstep.storage.run_lock import RunLock, check_idle

Log = Callable[[str], None]
_BEGUN, _RESUMED = "begun", "resumed"  # what the first of several processes tells the others


@flushed_denormals()  # PyTorch's threads, which begin here, do the same
def train(
    recipe: Recipe | Task[Any] | str | Path,
    out: str | Path,
    log: Log | None = None,
    *,
    overrides: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    start_from: str | Path | None = None,
    trust_code: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a recipe into a new folder.

    Args:
        recipe: a shipped name, a YAML file, the name of a job, a `Recipe`, or a task.
        out: the folder to create.
        log: receives each line for the user; None writes to stderr.
        overrides: changes such as "train.max_minutes=5", if `recipe` is a name or a file.
        data: files, or data frames of pandas or polars, for keys of the recipe's `data` such as "train", if `recipe`
            is a name or a file; frames are written into the run, as Parquet.
        start_from: a run whose vocabulary and weights to start from; its model must have the same shape.
        trust_code: whether code stored in `start_from` may be executed.
        callbacks: see `everstep.fit`.

    Raises:
        ConfigError: the recipe cannot be used; nothing was done.
        DataError: the data cannot be used; nothing was left behind.
        RunError: `out` exists or cannot be written; `start_from` is not a matching run.
        Diverged, Interrupted: see `everstep.fit`.
    """
    if rank():
        return follow(out, trust_code=True)
    out, given = Path(out), GivenFrames(data or {})
    if isinstance(recipe, Task | Recipe) and (data or overrides):
        beside = "data" if data else "overrides"
        raise ConfigError(f"train: expected the name or the file of a recipe beside `{beside}`; got a whole recipe")
    task = _task(recipe, [*listed_overrides(overrides), *given.overrides(out)], trust_code)
    section = getattr(task.recipe, "data", None)
    check_files(section, [name for name in file_keys(section) if name not in given.frames])
    task.recipe = with_absolute_paths(task.recipe)
    say = log or warn
    before = None if start_from is None else load(start_from, trust_code=trust_code)
    if before is not None:
        check_start(before, task)
    with joined() as world:
        with stoppable("training had not begun, and nothing is left of it"), begun(out, (*task.files, *given.names)):
            _set_threads(task)
            given.write(out)
            begin(task, say, None if before is None else before.path)
            job = _Job(out, task, say)
            if before is None:
                begin_embedding(task, job.model, say)
            else:
                fill_from(job.model, before, task, say)
            if task.code.digests and task.optimised:
                job.try_out()
            job.try_selection()
            job.begin()
        world.told(_BEGUN)
        return job.fit(resume=False, callbacks=callbacks)


def begin(task: Task[Any], say: Log, adopted: Path | None = None) -> None:
    """Prepare a job for training, or take vocabularies and scalings from the run `adopted`.

    Raises:
        DataError: the data cannot be used.
    """
    task.prepare() if adopted is None else task.open(adopted)
    task.ready(say)
    say_trained_files(getattr(task.recipe, "data", None), say)


@flushed_denormals()
def resume(
    out: str | Path,
    log: Log | None = None,
    *,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Resume a stopped run from its newest checkpoint; the result equals that of an uninterrupted run.

    Args:
        out: the run folder.
        log: receives each line for the user; None writes to stderr.
        overrides: other limits, such as "train.max_steps=5000".
        trust_code: whether code stored in the run may be executed.
        callbacks: see `everstep.fit`.

    Raises:
        ConfigError: an override of a key that cannot change, or a limit below the progress made; nothing was done.
        RunError: there is no run, it is from a newer version or in use, or its data has changed.
        CheckpointError: every checkpoint is damaged.
    """
    if rank():
        return follow(out, trust_code=trust_code)
    out = Path(out)
    with joined() as world:
        with stoppable(f"training had not gone on, and {out} is as it was"):
            task, _ = opened(out, trust_code)
            if overrides:
                task = _raised(task, out, overrides)
                check_idle(out, f"{out} is being trained")
                check_resumable(out, task.recipe.train)
            _set_threads(task)
            job = _Job(out, task, log or warn)
            if overrides:
                with files.explained(out):
                    files.replace_file(out / RECIPE, to_yaml(task.recipe).encode())
        world.told(_RESUMED)
        return job.fit(resume=True, callbacks=callbacks)


def follow(out: str | Path, *, trust_code: bool = False) -> Run:
    """Take part in the training that the first of several processes begins or resumes, with the model as its result.

    `train` and `resume` come here in every process but the first. This one reads the run folder and writes nothing.

    Args:
        out: the run folder, which all processes must see.
        trust_code: whether code stored in the run may be executed.

    Raises:
        RunError: another process is lost.
        Diverged, Interrupted: see `everstep.fit`.
    """
    with joined() as world:
        resumed = world.told(None) == _RESUMED
        task, _ = opened(Path(out), trust_code)
        _set_threads(task)
        return _Job(Path(out), task, lambda line: None).fit(resume=resumed)


def load(path: str | Path, *, trust_code: bool = False, device: str = "cpu") -> Run:
    """Load a trained run.

    Args:
        path: the run folder.
        trust_code: whether code stored in the run (`RUN/code`) may be executed, with the rights of the caller.
        device: the device of the model.

    Raises:
        RunError: there is no run, it is from a newer version, not trained yet, damaged, or holds untrusted code.
    """
    path = Path(path)
    task, begun_with = opened(path, trust_code)
    if "recipe" in begun_with:
        check_recipe(path, task.recipe, begun_with["recipe"])
    file = path / MODEL_FILE
    if not file.exists():
        check_idle(path, f"{path} has no {MODEL_FILE} yet, since it is being trained")
        raise RunError(f"{path} has no {MODEL_FILE} yet; finish it: {_resuming(path, task)}")
    check_fits(task)
    model = task.model()
    try:
        load_weights(model, file, sealed="recipe" in begun_with, run=begun_with.get("run", ""))
    except RunError as error:
        raise RunError(f"{error}. If its checkpoints are whole, they have it: {_resuming(path, task)}") from None
    return Run(path, task, model.to(pick_device(device)))


def _task(recipe: Recipe | Task[Any] | str | Path, overrides: Sequence[str], trust_code: bool) -> Task[Any]:
    if isinstance(recipe, Task):
        return recipe
    if isinstance(recipe, Recipe):
        code, data = UserCode(), getattr(recipe, "data", None)
        return find_task(recipe.task, code, dict(data) if isinstance(data, Section) else None)(recipe, code)
    return load_task(recipe, overrides, trust_code)


def _raised(task: Task[Any], out: Path, overrides: Sequence[str]) -> Task[Any]:
    """The job with new limits, which are written into the run."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.removeprefix("train.") not in RAISED or not key.startswith("train."):
            known = ", ".join(f"train.{name}" for name in RAISED)
            raise ConfigError(f"--resume: {key} cannot change in the middle of a run; what can: {known}")
    other = changed(task, overrides)
    other.open(out)
    return other


class _Job:
    """A task with its model and batches."""

    def __init__(self, out: Path, task: Task[Any], say: Log):
        self.out, self.task, self.say = out, task, say
        check_fits(task)
        torch.manual_seed(task.recipe.seed)
        self.device = pick_device(task.recipe.train.device)
        self.model: nn.Module = task.model().to(self.device)
        update_rules(self.model, task.recipe.train, task.recipe.seed)  # refuses unknown parameters before any work
        if task.optimised:
            sparse_gradients(self.model, task.recipe.train)  # refuses what they do not go with
        self.batches = task.batches("train", self.model, "learn") if task.optimised else []
        if not task.optimised and world_size() > 1:
            raise ConfigError(f"a {task.recipe.task} makes no step that several processes could do; train it in one")
        with joined() as world:
            check_divisible(world, self.model, as_batches(self.batches))

    def try_out(self) -> None:
        """Run user code once, on a copy of the model and the first batch, before anything is written."""
        model = copy.deepcopy(self.model).train()
        batches = as_batches(self.batches)
        with torch.random.fork_rng():
            batch = batches.batch(0, 0).to(device_of(model))
            next(iter(self.task.objective(model, batch, None)), None)

    def try_selection(self) -> None:
        """Validate the untrained model if only this shows whether the measure `select` exists."""
        settings, scores = self.task.recipe.train, self.task.scores
        selection = Selection(settings.model_copy(update={"select_best": "highest"}))
        if "valid" not in self.task.splits() or selection.name in (LOSS, *scores):
            return
        with rng.untouched():
            self.model.eval()
            selection.read(self.task.validate(self.model))
            self.model.train()
        Selection(settings, scores)  # also checks that the best direction is known

    def begin(self) -> None:
        """Write the files of a run, the recipe last, since its existence makes the folder a run."""
        task, out = self.task, self.out
        with files.explained(out):
            task.save(out)
            task.code.save(out)
            learned = digests(out, task.files)
            begun = {**self._begun_with, "files": learned, "code": task.code.digests}
            card.write_environment(out, **begun, run=name_of(begun))
            files.replace_file(out / RECIPE, to_yaml(task.recipe).encode())

    @property
    def _begun_with(self) -> dict[str, Any]:
        return {"recipe": flat(self.task.recipe), "data": self.task.identity()}

    def fit(self, resume: bool, callbacks: Sequence[Callback] = ()) -> Run:
        """Train, evaluate, and write the card."""
        task, model, recipe = self.task, self.model, self.task.recipe
        if not resume:
            self.say(f"model: {getattr(model, 'body', model)}\n{parameter_count(model):,} parameters")
        if recipe.train.device == "auto":
            self.say(f"device: {self.device} (train.device: auto)")
        if not task.optimised:
            return self._as_prepared(resume)
        made_by = flat(recipe, leave_out=("seed", "train"))
        name = run_name(self.out)
        result = self._fitted(
            model,
            task.objective,
            self.batches,
            recipe.train,
            out=self.out,
            validate=task.validate if "valid" in task.splits() else None,
            callbacks=callbacks,
            seed=recipe.seed,
            resume=resume,
            identity=task.identity()
            | {key: made_by[key] for key in FUNCTION if key in made_by}
            | ({"run": name} if name else {}),
            recipe=made_by,
            units=Units(task.unit, task.loss_unit, task.scores),
            resume_command=_resuming(self.out, self.task),
            log=self.say if self.say is not warn else None,
        )
        run = Run(self.out, task, model)
        if rank():
            return run
        if resume and not result.metrics:
            key = "patience" if result.stopped_by == "early stopping" else result.stopped_by
            self.say(f"no step was left to make; to train on, raise {key}: {_resuming(self.out, task)} train.{key}=…")
        self._report(run, result)
        return run

    def _as_prepared(self, resume: bool) -> Run:
        """The run of a job whose `prepare` has fitted the model: no step is made."""
        if resume:
            self._check_as_begun()
        with RunLock(self.out):
            save_weights(self.out / MODEL_FILE, weights(self.model), 0, run_name(self.out))
        self._amend()
        run = Run(self.out, self.task, self.model)
        self._report(run, FitResult(0, 0.0, 0, 0.0, None, None, "nothing to optimise"))
        return run

    def _check_as_begun(self) -> None:
        """Refuse another recipe or other data than those that `prepare` has seen."""
        before, now = card.read_environment(self.out), self._begun_with
        check_recipe(self.out, self.task.recipe, before.get("recipe", {}))
        if changed := [key for key in now["data"] if now["data"][key] != before.get("data", {}).get(key)]:
            raise RunError(
                f"cannot resume {self.out}: its data has changed since it was begun ({', '.join(changed)}); give it "
                "what it was begun with, or train anew in another folder"
            )

    def _fitted(self, *given: Any, **options: Any) -> FitResult:
        """`fit`, with advice after a divergence on where to edit the recipe, which a resume reads again."""
        try:
            result = fit(*given, **options)
            self._amend()
            return result
        except Interrupted:
            self._amend()
            raise
        except Diverged as error:
            where = f"Settings are in {self.out / 'config.yaml'}; then: {_resuming(self.out, self.task)}"
            raise Diverged(f"{error}. {where}") from None

    def _amend(self) -> None:
        """Store the digests of the recipe, which may have been edited since the run began."""
        if rank():
            return
        card.amend_environment(self.out, **self._begun_with)

    def _report(self, run: Run, result: FitResult) -> None:
        scores = {split: run.evaluate(split) for split in self.task.splits() if split != "train"}
        card.write_scores(self.out, scores)
        about = card.trained(self.task, run.model, result)
        card.write_card(self.out, self.task, run.model, about, scores)
        made = f"{counted(result.steps, 'step')}, {result.epochs:.2f} epochs, {result.seconds:.0f} s"
        self.say(f"done: {made}; ended by {result.stopped_by}" if self.task.optimised else "done: no step is needed")
        for split, measures in scores.items():
            names = [name for name in self.task.shown if name in measures]
            unknown = f" ({share:.2%} of the tokens are <unk>)" if (share := measures.get("unknown_share")) else ""
            shown = [f"{name.replace('_', ' ')} {card.shown_measure(measures, name)}" for name in names]
            self.say(f"{split}: {', '.join(shown)}{unknown}")
        if scores and isinstance(self.task, HasRivals):
            split = list(scores)[-1]
            rivals = card.quick_rivals(self.task, split)
            if not rivals.found and not rivals.missing:  # none that is quick
                return
            if rivals.found:
                card.write_scores(self.out, scores | {split: {**scores[split], "rivals": rivals.found}})
            card.write_card(self.out, self.task, run.model, about, scores, rivals)
            self.say(rivals.line(next(name for name in self.task.shown if name in scores[split])))


def _set_threads(task: Task[Any]) -> None:
    if task.recipe.train.threads is not None:
        torch.set_num_threads(task.recipe.train.threads)


def _resuming(path: Path, task: Task[Any]) -> str:
    return f"{launched()} train --resume {shlex.quote(str(path))}{trusting(task)}"
