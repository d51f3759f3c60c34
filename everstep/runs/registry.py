"""Jobs by name: a file of `everstep/tasks/`, an entry point of another package, or a file of the user's."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from everstep.errors import ConfigError
from everstep.runs.task import Task
from everstep.runs.user_code import UserCode, is_code

GROUP = "everstep.tasks"
"""The package whose files are jobs, and the group of entry points by which others add one: `name = "module:Class"`."""


def task_names() -> list[str]:
    """The jobs that can be named, without importing them."""
    own = [module.name.replace("_", "-") for module in pkgutil.iter_modules(importlib.import_module(GROUP).__path__)]
    return sorted({*own, *(entry.name for entry in entry_points(group=GROUP))})


def find_task(name: Any, code: UserCode) -> type[Task[Any]]:
    """The class of a job: the only `Task` that a file of `everstep/tasks` defines, an entry point's, or FILE.py:CLASS.

    Raises:
        ConfigError: no such job, what was found is no `Task`, or a package that the job needs is missing.
    """
    found = code.find("task", name) if is_code(name) else _named(name)
    if not (isinstance(found, type) and issubclass(found, Task)):
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ConfigError(f"task: expected a subclass of everstep.Task; {name} is {kind}")
    missing = [package for package in found.extras if find_spec(package) is None]
    if missing:
        raise ConfigError(f"task: {name} needs {', '.join(missing)}: {found.remedy or 'pip install ' + missing[0]}")
    return found


def _named(name: Any) -> Any:
    known = task_names()
    if not isinstance(name, str) or name not in known:
        near = get_close_matches(str(name), known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"task: expected one of {', '.join(known)}, or FILE.py:CLASS; got {name!r}{hint}")
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    module = importlib.import_module(f"{GROUP}.{name.replace('-', '_')}")
    own = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    return next(item for item in own if issubclass(item, Task))
