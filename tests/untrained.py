"""Runs that were not trained, for tests of what is done with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everstep.data import Tokenizer
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run


def untrained(folder: Path, recipe: str, *overrides: str, tokenizer: Tokenizer | None = None) -> Run:
    """A run with new weights; its vocabulary is of the recipe's text unless one is given."""
    task: Any = load_task(recipe, overrides)
    if tokenizer is None:
        task.tokenizer = task.texts.tokenizer()
    else:
        task.tokenizer = tokenizer
    return Run(folder, task, task.model())
