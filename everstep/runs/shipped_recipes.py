"""The recipes that come with the package, and jobs by their defaults, by name. Showing them imports no torch."""

from __future__ import annotations

import difflib
import os
import shlex
from pathlib import Path

from everstep.errors import ConfigError
from everstep.runs.job_names import described, jobs
from everstep.storage.reading import read_small, reason

_LARGEST = 1 << 20  # largest recipe in bytes, for which the parser takes seconds
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def recipes() -> list[tuple[str, str]]:
    """Name and first comment line of each shipped recipe."""
    files = sorted(RECIPES.glob("*.yaml"))
    return [(file.stem, read_recipe(file).partition("\n")[0].removeprefix("#").strip()) for file in files]


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a shipped name, or the given path. A name that ends in .yaml, exists or has a folder is a path."""
    name = str(name_or_path)
    shipped = RECIPES / f"{name}.yaml"
    path = Path(name)
    if os.sep not in name and path.suffix not in (".yaml", ".yml") and shipped.is_file():
        return shipped
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{name} is a folder; expected a recipe. {as_text(path, os.path.join(name, '*.txt'))}")
    names = [known for known, _ in recipes()]
    near = difflib.get_close_matches(path.stem, [*names, *dict(jobs())], 1)
    hint = f" Did you mean {near[0]}?" if near else f" Shipped: {', '.join(names)}."
    raise ConfigError(f"no recipe {name!r}: expected a shipped name, a YAML file or a job.{hint}")


def job_recipe(name_or_path: str | Path) -> str | None:
    """The recipe of a job that is named in place of one: all defaults. None if a recipe or a file has that name.

    >>> print(job_recipe("mine.py:Mine"))
    task: mine.py:Mine
    <BLANKLINE>

    Raises:
        ConfigError: no class is named after the file.
    """
    name = str(name_or_path)
    if ".py:" in name:
        if not name.rpartition(":")[2].isidentifier():
            raise ConfigError(f"{name}: expected FILE.py:CLASS, the file of a job and the class in it.")
        return f"task: {name}\n"
    if (RECIPES / f"{name}.yaml").is_file() or Path(name).exists() or (about := described(name)) is None:
        return None
    return f"# {about}\ntask: {name}\n"


def recipe_text(name_or_path: str | Path) -> str:
    """The YAML text of a shipped name, a file or a job."""
    return job_recipe(name_or_path) or read_recipe(recipe_path(name_or_path))


def as_text(path: Path, files: str) -> str:
    """Advice for a text file given in place of a recipe."""
    data = shlex.quote(f"data.train={files}")
    return f"To learn from it as a text: everstep train text-chars {data} --out runs/{shlex.quote(path.stem or 'mine')}"


def read_recipe(path: Path) -> str:
    """The YAML text of a recipe file.

    Raises:
        ConfigError: the file cannot be read, is not regular, is too large, or is not UTF-8.
    """
    try:
        return read_small(path, _LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {reason(error)}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: expected YAML in UTF-8; line {line}, byte {error.start} is not UTF-8.") from None
