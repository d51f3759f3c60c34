"""The name of a run, by which its weights are told from those of other runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from everstep.runs import card
from everstep.storage.reading import json_text

RAISED = ("max_steps", "max_epochs", "max_minutes", "patience", "threads", "log_every_seconds", "keep_last", "device")
"""Keys of `train` that may change at resume."""


def name_of(begun: dict[str, Any]) -> str:
    """The name of a run in its weights: a digest of its `begun` entries, without data paths and changeable keys."""
    free = {f"train.{key}" for key in RAISED} | {f"data.{split}" for split in ("train", "valid", "test")}
    recipe = {key: value for key, value in begun["recipe"].items() if key not in free}
    return hashlib.sha256(json_text({**begun, "recipe": recipe}, sort_keys=True).encode()).hexdigest()


def run_name(out: Path) -> str:
    """The name of the run in a folder; "" for runs begun by an early version."""
    return str(card.read_environment(out).get("run", ""))
