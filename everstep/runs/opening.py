"""Opening a run folder, with checks that its files have not changed since the run began."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everstep.errors import RunError
from everstep.runs import card
from everstep.runs.folder import ENVIRONMENT, RECIPE, refuse_no_run
from everstep.runs.recipe import Recipe
from everstep.runs.recipe_files import code_of, flat, parse_task
from everstep.runs.shipped_recipes import read_recipe
from everstep.runs.task import Task
from everstep.storage.reading import open_regular, reason

_FREE = ("seed", "train", "valid", "test", "similarity", "analogies", "variational", "init_range")
SAME, CHANGED, UNKNOWN = "as trained", "changed", "not recorded"


def opened(path: Path, trust_code: bool) -> tuple[Task[Any], dict[str, Any]]:
    """The job of a run, with its vocabularies and scalings, and the `begun` entries of `environment.json`.

    Raises:
        RunError: there is no run, it is from a newer version, damaged, or holds code that is not trusted.
        ConfigError, DataError: its recipe or the files of its job cannot be used.
    """
    refuse_no_run(path)
    begun_with = card.read_environment(path)
    code, version = code_of(path, begun_with, trust_code)
    task = parse_task(read_recipe(path / RECIPE), str(path / RECIPE), code=code, version=version)
    for name, before in begun_with.get("files", {}).items():
        if name in task.files and digest(path / name) != before:
            raise RunError(
                f"{path / name} is not the one that the run was begun with: it is damaged, or of another run"
            )
    task.open(path)
    return task, begun_with


def digests(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each file, in the form stored in `environment.json`."""
    return {name: digest(path / name) for name in names}


def digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        with open(open_regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from None


def check_recipe(path: Path, recipe: Recipe, before: dict[str, Any]) -> None:
    """Refuse a recipe with changed keys that determine the model or the encoding of its data.

    `before` holds the dotted keys (see `flat`) when training last began or resumed. Keys for data files, training and
    sampling may change.

    Raises:
        RunError: another key differs; the message names it.
    """
    now = flat(recipe)
    changed = [key for key in before if decides(key) and key in now and now[key] != before[key]]
    if changed:
        told = "; ".join(f"{key}: was {before[key]!r}, now {now[key]!r}" for key in changed)
        raise RunError(f"{path / RECIPE} is not what the model was trained by: {told}. Put that back")


def decides(key: str) -> bool:
    """Whether the model or the encoding of its data depends on a dotted key of a recipe."""
    section, _, name = key.rpartition(".")
    return section in ("", "model", "data") and name not in _FREE and not name.endswith(("dropout", "drop"))


def compared(path: Path, split: str, now: str | None) -> str:
    """SAME or CHANGED: whether a split has the digest it had when the run began; UNKNOWN if not recorded."""
    before = card.read_environment(path).get("data", {}) if (path / ENVIRONMENT).exists() else {}
    if now is None or split not in before:
        return UNKNOWN
    return SAME if before[split] == now else CHANGED
