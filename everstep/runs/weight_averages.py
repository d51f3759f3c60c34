"""A run whose weights are the mean of another run's last checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from everstep.errors import ConfigError, DataError, RunError
from everstep.learn import checkpoint
from everstep.learn.bookkeeping import CHECKPOINTS
from everstep.learn.checkpoint import Store
from everstep.learn.selection import Selection
from everstep.learn.snapshot import fault
from everstep.learn.weights import MODEL_FILE, fill, must_be_finite, save_weights, weights, with_todays_names
from everstep.runs import card
from everstep.runs.folder import RECIPE, begun
from everstep.runs.opening import digests
from everstep.runs.recipe_files import flat, to_yaml
from everstep.runs.run import Run, warn
from everstep.runs.run_names import name_of, run_name
from everstep.runs.task import Task, trusting
from everstep.runs.training import Log, load
from everstep.runs.workers import stoppable
from everstep.storage import files
from everstep.storage.run_lock import check_idle


def average(
    run: str | Path, last: int, out: str | Path | None = None, *, trust_code: bool = False, log: Log | None = None
) -> Run:
    """Make a run of the mean w̄ = (w_1 + … + w_N) / N of the weights in the last N checkpoints of a run.

    Each w_i is what validation saw at that step: the raw weights, or their average if `train.averaging` was active.
    Buffers of floating-point numbers are averaged too, so that the mean and variance of batch normalisation are means
    of those of the checkpoints, not those of the averaged network; other buffers are the newest ones.

    Source: Junczys-Dowmunt, Dwojak and Sennrich, "The AMU-UEDIN submission to the WMT16 news translation task", 2016.

    Args:
        run: the run folder; it is not changed.
        last: N, at least 2 and at most `train.keep_last` of the run.
        out: the folder to create; None: RUN-average-N.
        trust_code: whether code stored in the run may be executed.
        log: receives each line for the user; None writes to stderr.

    Raises:
        ConfigError: `last` is less than 2.
        RunError: the run has fewer checkpoints, is being trained, or holds untrusted code; a checkpoint is of another
            run or model, or not finite; `out` exists.
        CheckpointError: a checkpoint is damaged.
    """
    path, say = Path(run), log or warn
    if last < 2:
        raise ConfigError(f"average: expected at least 2 checkpoints to average; got {last}")
    before = load(path, trust_code=trust_code)
    task, model = before.task, before.task.model()
    check_idle(path, f"{path} is being trained")
    folders = _last(path, task, last)
    new = _beside(path, f"-average-{last}") if out is None else Path(out)
    steps = _fill(model, folders, run_name(path))
    with stoppable("nothing is left of the average"), begun(new, task.files):
        _write(new, task, model, path, steps)
    averaged = Run(new, task, model)
    _compare(before, averaged, say)
    made = [
        f"weights: the mean of the checkpoints of {path} at the steps {', '.join(f'{step:,}' for step in steps)}",
        f"again: everstep average {shlex.quote(str(path))} --last {last}{trusting(task)}",
    ]
    card.write_card(new, task, model, made, _scores(averaged, say))
    return averaged


def _beside(path: Path, ending: str) -> Path:
    """A folder beside that of a run, also where this is given as `.` or `..`."""
    named = path if path.name not in ("", "..") else path.resolve()
    return named.with_name(named.name + ending)


def _last(path: Path, task: Task[Any], last: int) -> list[Path]:
    """The folders of the last N checkpoints, newest first. One kept only for its validation is not among them."""
    if not task.optimised:
        raise RunError(f"average: {path} ({task.recipe.task}) is fitted without steps, so that it has no checkpoints")
    kept = task.recipe.train.keep_last
    found = Store(path / CHECKPOINTS, kept).folders()[:kept]
    if len(found) < last:
        raise RunError(
            f"average: expected {last} checkpoints, but {path} has {len(found)} (train.keep_last={kept}). Ask "
            f"for fewer (--last), or train with train.keep_last={last} or more; train.checkpoint_every says how often "
            "one is saved"
        )
    return found[:last]


def _fill(model: nn.Module, folders: Sequence[Path], run: str) -> list[int]:
    """Fill the model with the mean of the checkpoints, and return their steps, oldest first."""
    targets, watched = weights(model), must_be_finite(model)
    sums: dict[str, Tensor] = {}
    newest: dict[str, Tensor] = {}
    steps = []
    for folder in folders:
        held, step = _weights_of(model, folder, targets, watched, run)
        steps.append(step)
        newest = newest or held
        for name, tensor in held.items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    means = {
        name: (sums[name] / len(folders)).to(tensor.dtype) if name in sums else tensor
        for name, tensor in newest.items()
    }
    fill(targets, means, str(folders[0].parent))
    return steps[::-1]


def _weights_of(
    model: nn.Module, folder: Path, targets: dict[str, Tensor], watched: frozenset[str], run: str
) -> tuple[dict[str, Tensor], int]:
    """The weights of a checkpoint that validation saw, and their step."""
    found = checkpoint.load(folder)
    if (reason := fault(found, watched)) is not None:
        raise RunError(f"average: checkpoint {folder}: {reason}; delete it, or average those of another run")
    identity = found.data.get("identity", {})
    if run and identity.get("run") != run:
        raise RunError(f"average: checkpoint {folder} is of another run than {folder.parent.parent}")
    parts = (found.tensors.get("model", {}), found.tensors.get("average", {}))
    held = {name: tensor for part in parts for name, tensor in with_todays_names(model, part).items()}
    missing = [name for name in targets if name not in held]
    if missing:
        raise RunError(f"average: checkpoint {folder} lacks {missing[0]!r}: it is of another model")
    for name, target in targets.items():
        if held[name].shape != target.shape:
            had = f"{tuple(held[name].shape)} there and {tuple(target.shape)} in the model"
            raise RunError(f"average: {name!r} of checkpoint {folder} is {had}")
    return {name: held[name] for name in targets}, int(folder.name.rpartition("-")[2])


def _write(out: Path, task: Task[Any], model: nn.Module, of: Path, steps: Sequence[int]) -> None:
    """The files of the new run, the recipe last."""
    begun_with = card.read_environment(of)
    with files.explained(out):
        task.save(out)
        task.code.save(out)
        begun_now = {
            "recipe": begun_with.get("recipe", flat(task.recipe)),
            "data": begun_with.get("data", {}),
            "files": digests(out, task.files),
            "code": task.code.digests,
            "average_of": {"run": str(of), "name": run_name(of), "steps": list(steps)},
        }
        name = name_of(begun_now)
        card.write_environment(out, **begun_now, run=name)
        save_weights(out / MODEL_FILE, weights(model), steps[-1], name)
        files.replace_file(out / RECIPE, to_yaml(task.recipe).encode())


def _compare(before: Run, after: Run, say: Log) -> None:
    """Say the validation of the run's own weights and of their average, where there is one."""
    task = after.task
    if "valid" not in task.splits():
        say("there is no validation split on which to compare the average with the run's own weights")
        return
    selection = Selection(task.recipe.train, task.scores)
    try:
        one, other = (selection.read(task.validate(run.model)) for run in (before, after))
    except DataError as error:
        say(f"note: the average was not compared with the run's own weights: {error}")
        return
    verdict = "better" if other.cost < one.cost else "no better"
    say(f"valid, {one.name}: {one.value:.4f} with the run's weights, {other.value:.4f} with the average: {verdict}")


def _scores(run: Run, say: Log) -> dict[str, Any]:
    """The measures of every split but training, also written to `scores.json`; a split whose data is gone has none."""
    scores = {}
    for split in run.task.splits():
        if split == "train":
            continue
        try:
            measures = scores[split] = run.evaluate(split)
        except DataError as error:
            say(f"note: {split} was not scored: {error}")
            continue
        shown = [f"{name} {card.shown_measure(measures, name)}" for name in run.task.shown if name in measures]
        say(f"{split}: {', '.join(shown).replace('_', ' ')}")
    card.write_scores(run.path, scores)
    return scores
