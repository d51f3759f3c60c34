"""Runs with new weights, of bundled data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run

TINY = ("model.hidden_size=4", "model.embedding_size=3", "model.layers=1")


def made(folder: Path, name: str, *overrides: str) -> Run:
    """A run with new weights, of bundled data."""
    task: Any = load_task(name, [*TINY, *overrides])
    task.prepare()
    return Run(folder, task, task.model())
