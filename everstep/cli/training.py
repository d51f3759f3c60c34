"""`everstep train`: from a recipe to a run folder, and on with one that was stopped."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from everstep.cli.common import me, prepare, resuming
from everstep.errors import DataError, Interrupted, RunError

if TYPE_CHECKING:
    from everstep.tasks.config import Config
    from everstep.tasks.run import Run


def train(
    recipe: str | None = typer.Argument(
        None, metavar="RECIPE", help="A shipped name (`everstep recipes`) or a YAML file."
    ),
    overrides: list[str] | None = typer.Argument(None, metavar="KEY=VALUE", help="Changes of the recipe's keys."),
    out: Path | None = typer.Option(None, "--out", "-o", metavar="RUN", help="Folder to make; never overwritten."),
    resume: Path | None = typer.Option(None, "--resume", metavar="RUN", help="Go on with a stopped run."),
) -> None:
    """Train by a recipe, or go on with a run that was stopped.

    \b
      everstep train text-words data.train=my.txt --out runs/mine
      everstep train shakespeare model.hidden_size=256 train.max_minutes=10 --out runs/small
      everstep train mine.yaml 'data.train=[a.txt.gz, b.txt]' --out runs/two
      everstep train --resume runs/mine

    KEY=VALUE changes any key of the recipe (`everstep recipes show NAME --all` prints them all); values are YAML. All
    of it is checked before any work.

    Ctrl-C and SIGTERM finish the step and save; --resume then goes on exactly as if nothing had happened, bit for bit.
    """
    if resume is not None:
        if recipe or out:
            raise typer.BadParameter(
                "expected RUN alone, whose recipe it goes on with; came more.", param_hint="--resume"
            )
        finish(go_on(resume))
        return
    if recipe is None:
        raise typer.BadParameter("expected a recipe, such as text-words; `everstep recipes` lists them.")
    if "=" in recipe:
        raise typer.BadParameter(f"expected a recipe first, such as text-words; came {recipe!r}.")
    from everstep.tasks.config import load_recipe

    config = load_recipe(recipe, overrides or [])
    if out is None:
        raise typer.BadParameter(f"expected --out RUN, the folder to make, such as --out runs/{Path(recipe).stem}.")
    finish(start(config, out))


def check_files(config: Config) -> None:
    """Says which file is missing, by its key, before torch is imported."""
    from everstep.data.text import expand

    for split, paths in (("train", config.data.train), ("valid", config.data.valid), ("test", config.data.test)):
        if paths is None:
            continue
        try:
            expand(paths)
        except DataError as error:
            unset = "EVERSTEP_DATA" in str(paths) and not os.environ.get("EVERSTEP_DATA")
            hint = "; EVERSTEP_DATA is not set: set it to the folder that holds the data sets" if unset else ""
            raise DataError(f"data.{split}: {error}{hint}") from None


def start(config: Config, out: Path) -> Run:
    """Train into a new folder; what cannot work is refused before torch is imported."""
    from everstep.tasks.folder import is_free, is_run

    check_files(config)
    if not is_free(out):
        hint = f" To go on with it: {resuming(out)}" if is_run(out) else ""
        raise RunError(f"{out} exists and is not overwritten; give another --out, or delete it.{hint}")
    prepare()
    from everstep.tasks import run

    try:
        return run.train(config, out)
    except Interrupted as stop:
        raise (_with_resume(stop, out) if is_run(out) else stop) from None


def go_on(path: Path) -> Run:
    """Resume the run in that folder."""
    from everstep.tasks.folder import is_run

    if not is_run(path):
        raise RunError(f"{path} is not a run: it has no config.yaml, so there is nothing to go on with.")
    prepare()
    from everstep.tasks import run

    try:
        return run.resume(path)
    except Interrupted as stop:
        raise _with_resume(stop, path) from None


def _with_resume(stop: Interrupted, out: Path) -> Interrupted:
    text = str(stop).partition("; resume with: ")[0]
    return Interrupted(f"{text}\nTo go on: {resuming(out)}", stop.signal_number)


def finish(run: Run) -> None:
    """Where the run is, and what can be done with it."""
    prompt = f" --prompt {shlex.quote(known)}" if (known := known_prompt(run)) else ""
    path = shlex.quote(str(run.path))
    print(f"\nThe trained model is in {run.path}. Next:")
    print(f"  {me()} eval {path}")
    print(f"  {me()} generate {path}{prompt} --temperature 0.8")
    print(f"  {me()} score {path} < sentences.txt")
    print(f"  {me()} look {path}")


def known_prompt(run: Run) -> str:
    """A beginning to suggest, of what the vocabulary has; none where the recipe has its own."""
    if run.config.decode.prompt:
        return ""
    first = next(run.texts.read("train"), "").split(maxsplit=1)
    for prompt in ("The", *first[:1], *(word[:1] for word in first[:1])):
        with suppress(DataError):  # a symbol that the vocabulary lacks
            if not run.unknown(prompt):
                return prompt
    return ""
