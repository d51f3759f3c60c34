"""`everstep train`: train a recipe into a run folder, or resume a stopped run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everstep.cli.common import log, me, prepare, resuming
from everstep.errors import DataError, Diverged, Interrupted, RunError
from everstep.processes import rank

if TYPE_CHECKING:
    from everstep.runs.run import Run
    from everstep.runs.task import Task


def train(
    recipe: str | None = typer.Argument(
        None,
        metavar="RECIPE",
        help="A shipped name (`everstep recipes`), a YAML file, or a job (`everstep recipes jobs`, FILE.py:CLASS).",
    ),
    overrides: list[str] | None = typer.Argument(None, metavar="KEY=VALUE", help="Changes of the recipe's keys."),
    out: Path | None = typer.Option(None, "--out", "-o", metavar="RUN", help="Folder to create; never overwritten."),
    resume: Path | None = typer.Option(None, "--resume", metavar="RUN", help="Resume a stopped run."),
    start_from: Path | None = typer.Option(
        None, "--from", metavar="RUN", help="Start from the weights and the vocabulary of another run."
    ),
    trust_code: bool = typer.Option(
        False, "--trust-code", help="Execute the Python files stored in the run of --resume or --from."
    ),
) -> None:
    """Train a recipe, or resume a stopped run.

    \b
      everstep train text-words data.train=my.txt --out runs/mine
      everstep train shakespeare model.hidden_size=256 train.max_minutes=10 --out runs/small
      everstep train mine.yaml 'data.train=[a.txt.gz, b.txt]' --out runs/two
      everstep train text-words data.train=my.txt model.cell=mycells.py:Mine --out runs/own
      everstep train text-words data.train=more.txt --from runs/mine --out runs/tuned
      everstep train --resume runs/mine
      everstep train --resume runs/mine train.max_steps=5000

    KEY=VALUE changes any key of the recipe (`everstep recipes keys NAME` explains all keys); values are YAML.
    Everything is checked before any work.

    Ctrl-C and SIGTERM finish the step and save; --resume then continues with the same result as without the stop, on a
    CPU bit for bit.

    Several processes train one model together, each on its rows of every batch, with the same gradient as one:

    \b
      torchrun --nproc-per-node 2 -m everstep train text-words data.train=my.txt --out runs/mine
    """
    if resume is not None:
        changes = [*([recipe] if recipe else []), *(overrides or [])]
        if out or start_from or any("=" not in change for change in changes):
            raise typer.BadParameter(
                "expected RUN alone, or with limits to raise, such as train.max_steps=5000; got more.",
                param_hint="--resume",
            )
        if rank():
            follow(resume, trust_code)
        else:
            finish(go_on(resume, changes, trust_code))
        return
    if recipe is None:
        raise typer.BadParameter("expected a recipe, such as text-words; `everstep recipes` lists them.")
    if "=" in recipe:
        raise typer.BadParameter(f"expected a recipe first, such as text-words; got {recipe!r}.")
    if rank() and out is not None:
        follow(out, trust_code=True)  # what the first process was given to train
        return
    from everstep.runs.recipe_files import load_task

    task = load_task(recipe, overrides or [], trust_code)
    if out is None:
        raise typer.BadParameter(f"expected --out RUN, the folder to make, such as --out runs/{Path(recipe).stem}.")
    tell_bundled(task)
    finish(start(task, out, start_from, trust_code))


def tell_bundled(task: Task[Any]) -> None:
    """Say that a job learns from data that come with everstep, and how to give other data."""
    named = getattr(getattr(task.recipe, "data", None), "train", None) or ()
    files = [named] if isinstance(named, str) else [name for name in named if isinstance(name, str)]
    if bundled := [name for name in files if name.startswith("everstep:")]:
        log(f"data: {', '.join(bundled)}, which comes with everstep; for data of your own: data.train=FILE")


def start(task: Task[Any], out: Path, start_from: Path | None = None, trust_code: bool = False) -> Run:
    """Train a job into a new folder."""
    from everstep.runs.folder import is_free, is_run, refuse_url
    from everstep.runs.text_data import check_files, file_keys

    refuse_url(out)
    section = getattr(task.recipe, "data", None)
    check_files(section, file_keys(section))
    if not is_free(out, task.files):
        hint = f" To resume it: {resuming(out)}" if is_run(out) else ""
        raise RunError(f"{out} exists and is not overwritten; give another --out, or delete it.{hint}")
    prepare()
    from everstep.runs import training

    try:
        return training.train(task, out, start_from=start_from, trust_code=trust_code)
    except Interrupted as stop:
        raise (_with_resume(stop, out) if is_run(out) else stop) from None


def go_on(path: Path, overrides: Sequence[str] = (), trust_code: bool = False) -> Run:
    """Resume the run in a folder."""
    from everstep.runs.folder import refuse_no_run

    refuse_no_run(path)
    prepare()
    from everstep.runs import training

    try:
        return training.resume(path, overrides=overrides, trust_code=trust_code)
    except Interrupted as stop:
        raise _with_resume(stop, path) from None


def follow(out: Path, trust_code: bool) -> None:
    """Take part in the training that the first of several processes begins; it says how it ends."""
    prepare()
    from everstep.runs import training

    try:
        training.follow(out, trust_code=trust_code)
    except (Diverged, Interrupted) as error:
        raise typer.Exit(error.exit_code) from None


def _with_resume(stop: Interrupted, out: Path) -> Interrupted:
    text = str(stop).partition("; resume with: ")[0]
    return Interrupted(f"{text}\nTo resume: {resuming(out)}", stop.signal_number)


def finish(run: Run) -> None:
    """Print the folder of the run, and commands to use it."""
    from everstep.runs.capabilities import abilities
    from everstep.runs.card import EXAMPLES, example
    from everstep.runs.task import trusting

    folder = f"{shlex.quote(str(run.path))}{trusting(run.task)}"
    print(f"\nThe trained model is in {run.path}. Next:")
    for verb in abilities(run.task):
        if verb in EXAMPLES:
            print(f"  {example(run.task, verb, folder, me())}{_prompt(run, verb)}")


def _prompt(run: Run, verb: str) -> str:
    known = known_prompt(run) if verb == "generate" else ""
    return f" --prompt {shlex.quote(known)}" if known else ""


def known_prompt(run: Run) -> str:
    """A prompt to suggest that the vocabulary covers; "" if the recipe has one."""
    if run.decode.prompt:
        return ""
    from everstep.runs.capabilities import Draws

    first = "".join(run.passage(None, 60).labels).split(maxsplit=1) if isinstance(run.task, Draws) else []
    for prompt in ("The", *first[:1], *(word[:1] for word in first[:1])):
        with suppress(DataError):  # the vocabulary lacks a symbol
            if not run.able("generate").decoder(run.model, prompt).unknown:
                return prompt
    return ""
