"""Jobs by name: a file of `everstep/tasks/`, an entry point of another package, or a user's file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from typing import Any

from everstep.errors import ConfigError
from everstep.runs.job_names import module_of_job, other_jobs, own_jobs, task_names
from everstep.runs.recipe import Recipe
from everstep.runs.task import Task
from everstep.runs.user_code import UserCode, is_code


def find_task(name: Any, code: UserCode, data: Mapping[str, Any] | None = None) -> type[Task[Any]]:
    """The class of a job: the only `Task` in a file of `everstep/tasks`, FILE.py:CLASS, or an entry point.

    An entry point cannot replace a job of `everstep/tasks`. `data` is the raw section of a recipe, by which a job may
    choose another class (`Task.for_data`).

    Raises:
        ConfigError: there is no such job, it is not a `Task`, or a package that it needs is missing.
    """
    found = code.find("task", name) if is_code(name) else _named(name)
    if not (isinstance(found, type) and issubclass(found, Task)):
        what = f"the class {found.__name__}, which is none" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ConfigError(f"task: expected a subclass of everstep.Task; {name} is {what}")
    _check_whole(name, found)
    found = found.for_data(data or {})
    missing = [package for package in found.extras if not _is_installed(package)]
    if missing:
        raise ConfigError(
            f"task: {name} needs {', '.join(missing)}: {found.remedy or 'pip install ' + ' '.join(missing)}"
        )
    return found


def _check_whole(name: str, kind: type[Task[Any]]) -> None:
    """Refuse a job that lacks a required method."""
    if lacking := sorted(kind.__abstractmethods__):
        raise ConfigError(f"task: {name} lacks {', '.join(lacking)}, which every everstep.Task has")
    recipe = getattr(kind, "Recipe", None)
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise ConfigError(
            f"task: {name} lacks Recipe, a subclass of everstep.Recipe with its settings, as in `Recipe = Mine`; "
            f"got {recipe!r}"
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def _named(name: Any) -> Any:
    if isinstance(name, str) and name in own_jobs():  # other packages, which take long to search, cannot replace it
        return _own(name)
    known = task_names()
    words = f"{', '.join(known)}, or FILE.py:CLASS for a job of your own"
    if name is None:
        raise ConfigError(f"task: missing; say what the job is: `task: NAME`, where NAME is one of {words}")
    if not isinstance(name, str) or name not in known:
        near = get_close_matches(str(name).lower(), known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        hint = f"; name the class in it: {name}:CLASS" if str(name).endswith(".py") else hint
        raise ConfigError(f"task: expected one of {words}; got {name!r}{hint}")
    return _from_package(other_jobs()[name])


def _own(name: str) -> Any:
    module = importlib.import_module(module_of_job(name))
    own = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    return next(item for item in own if issubclass(item, Task))


def _from_package(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        package = entry.dist.name if entry.dist is not None else "a package"
        raise ConfigError(f"task: {entry.name} of {package} ({entry.value}) cannot be imported: {error}") from None
