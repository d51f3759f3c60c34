"""`everstep recipes`: list, show, explain and copy the shipped recipes."""

from __future__ import annotations

from pathlib import Path

import typer

from everstep.errors import ConfigError
from everstep.storage.reading import json_text

app = typer.Typer(invoke_without_command=True)


@app.callback()
def recipes(ctx: typer.Context) -> None:
    """The recipes that come with everstep: ls, jobs, show, keys, cp.

    A recipe is a YAML file that defines data, model and training. Any key can be changed on the command line of `train`
    (train.max_minutes=5), or in a copy of the recipe.

    \b
      everstep recipes                               list the recipes
      everstep recipes jobs                          list the jobs, for `task:` of a recipe of your own
      everstep recipes show text-words               print one, with its comments
      everstep recipes show text-words --all         every key with its value, including defaults
      everstep recipes keys text-words               every key with type, default and meaning
      everstep recipes cp text-words mine.yaml       copy one, to edit it
      everstep train mine.yaml --out runs/mine
    """
    if ctx.invoked_subcommand is None:
        ls(as_json=False)


@app.command()
def ls(as_json: bool = typer.Option(False, "--json", help="JSON, for machines.")) -> None:
    """List the recipes.

    \b
      everstep recipes ls
    """
    from everstep.runs.shipped_recipes import recipes as shipped

    _print(shipped(), as_json)


def _print(listed: list[tuple[str, str]], as_json: bool) -> None:
    """Names and what they are, a line each."""
    if as_json:
        print(json_text([{"name": name, "about": about} for name, about in listed], ensure_ascii=False))
        return
    width = max(len(name) for name, _ in listed)
    for name, about in listed:
        print(f"{name:{width}}  {about}")


@app.command()
def jobs(as_json: bool = typer.Option(False, "--json", help="JSON, for machines.")) -> None:
    """List the jobs. A job's name is also a recipe of all its defaults.

    \b
      everstep recipes jobs
      everstep recipes keys motion
    """
    from everstep.runs.job_names import jobs as known

    _print(known(), as_json)


@app.command()
def show(
    name: str = typer.Argument(metavar="NAME", help="A shipped name, a YAML file or a job."),
    every: bool = typer.Option(False, "--all", help="Every key with its value, including defaults."),
) -> None:
    """Print a recipe.

    \b
      everstep recipes show ptb-small
    """
    from everstep.runs.shipped_recipes import recipe_text

    if not every:
        print(recipe_text(name), end="")
        return
    from everstep.runs.recipe_files import load_recipe, to_yaml

    print(to_yaml(load_recipe(name)), end="")


@app.command()
def keys(
    name: str = typer.Argument("text-words", metavar="NAME", help="A shipped name, a YAML file or a job."),
    as_json: bool = typer.Option(False, "--json", help="JSON, for machines."),
) -> None:
    """Explain every key of a recipe: type, default, value, meaning.

    \b
      everstep recipes keys text-words
      everstep recipes keys mine.yaml | grep dropout
    """
    from everstep.runs.recipe_files import explained_keys

    rows = explained_keys(name)
    if as_json:
        print(json_text(rows, ensure_ascii=False))
        return
    for row in rows:
        value = "" if row["value"] == row["default"] else f"  (here {row['value']})"
        print(f"{row['key']} = {row['default']}{value}\n    {row['type']}: {row['meaning']}")


@app.command()
def cp(
    name: str = typer.Argument(metavar="NAME", help="A shipped name or a job."),
    file: Path = typer.Argument(metavar="FILE", help="The file to create; an existing one is not overwritten."),
) -> None:
    """Copy a recipe to a new file, to edit it.

    \b
      everstep recipes cp text-words mine.yaml
    """
    from everstep.runs.shipped_recipes import recipe_text

    text = recipe_text(name).encode()
    if file.is_dir():
        file = file / f"{name}.yaml"
    try:
        with file.open("xb") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists; give another name, or delete it.") from None
    print(f"{file}: edit it, then  everstep train {file} --out runs/{file.stem}")
