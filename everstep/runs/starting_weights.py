"""Weights of another run to start a training from."""

from __future__ import annotations

import shlex
from typing import Any

from torch import nn

from everstep.errors import RunError
from everstep.learn.weights import MODEL_FILE, load_weights
from everstep.runs.folder import RECIPE
from everstep.runs.recipe_files import flat
from everstep.runs.run import Run
from everstep.runs.run_names import run_name
from everstep.runs.task import Say, Task, trusting
from everstep.runs.user_code import as_kept

FUNCTION = ("model.cell", "model.residual")
"""Keys that change the model's function but not the names or shapes of its weights."""


def check_start(before: Run, task: Task[Any]) -> None:
    """Refuse a run to start from that is of another job, or a job without weights.

    Raises:
        RunError: it is.
    """
    if type(before.task).__name__ != type(task).__name__:
        raise RunError(f"{before.path} is of another job ({before.recipe.task}) than the recipe ({task.recipe.task})")
    if not task.optimised:
        raise RunError(f"--from {before.path}: a {task.recipe.task} has nothing to optimise, so nothing to start from")


def fill_from(model: nn.Module, before: Run, task: Task[Any], say: Say) -> None:
    """Copy the weights of the run `before` into a model.

    Raises:
        RunError: shapes differ, a key of the recipe that changes the model's function, or what its weights number.
    """
    try:
        load_weights(model, before.path / MODEL_FILE, run=run_name(before.path))
        problem = ""
    except RunError as error:
        problem = f"{error}; "
    old, new = (flat(some.recipe) | some.numbered() for some in (before.task, task))
    decide = [key for key in new if key in task.numbered() or key in FUNCTION or (problem and key.startswith("model."))]
    keys = [key for key in decide if as_kept(old.get(key)) != as_kept(new[key])]
    if problem or keys:
        told = "; ".join(f"{key} is {old.get(key)!r} there and {new[key]!r} here" for key in keys)
        run = shlex.quote(str(before.path))
        recipe = shlex.quote(str(before.path / RECIPE))
        source = f"everstep train {recipe} KEY=VALUE --from {run}{trusting(before.task)}"
        raise RunError(f"--from {before.path}: {problem}{told}. To take its model as it is: {source}")
    theirs = before.task.code.digests
    for name, digest in task.code.digests.items():
        if theirs.get(name, digest) != digest:
            was = f"the file that {before.path} was trained by"
            say(f"warning: {name} is not {was}; its weights may not fit what it does now")
