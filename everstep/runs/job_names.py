"""The names of jobs, found without importing them: files of `everstep/tasks/` and entry points of other packages."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

GROUP = "everstep.tasks"
"""The package whose files are jobs, and the entry point group for others: `name = "module:Class"`."""


def own_jobs() -> list[str]:
    """The names of the jobs of `everstep/tasks/`."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(importlib.import_module(GROUP).__path__)]


def other_jobs() -> dict[str, EntryPoint]:
    """The jobs of other packages by name; none replaces a job of `everstep/tasks/`."""
    own = own_jobs()
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in own}


def task_names() -> list[str]:
    """The names of all jobs."""
    return sorted({*own_jobs(), *other_jobs()})


def jobs() -> list[tuple[str, str]]:
    """Name and description of each job: the first line of its file, or the object of its entry point."""
    others = other_jobs()
    return [(name, f"of {others[name].value}" if name in others else _described(name)) for name in task_names()]


def described(name: str) -> str | None:
    """The description of a job; None if there is no such job. Of a job of `everstep/tasks/` no package is searched."""
    if name in own_jobs():
        return _described(name)
    entry = other_jobs().get(name)
    return None if entry is None else f"of {entry.value}"


def module_of_job(name: str) -> str:
    """The module of a job of `everstep/tasks/`."""
    return f"{GROUP}.{name.replace('-', '_')}"


def _described(name: str) -> str:
    folder = Path(importlib.import_module(GROUP).__path__[0])
    source = (folder / f"{name.replace('-', '_')}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
