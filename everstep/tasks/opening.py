"""What a run folder holds against what the run was begun with: nothing is used in silence that has changed since."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from everstep.data import Tokenizer
from everstep.errors import RunError
from everstep.tasks import card
from everstep.tasks.config import Config, flat, parse_recipe, read_recipe
from everstep.tasks.folder import ENVIRONMENT, RECIPE, TOKENIZER, is_run

_FREE = ("seed", "train", "valid", "test", "variational", "init_range")
SAME, CHANGED, UNKNOWN = "as trained", "changed", "not recorded"


def opened(path: Path) -> tuple[Config, Tokenizer, dict[str, Any]]:
    """The recipe of a run, its vocabulary, and what `environment.json` says that it was begun with.

    Raises:
        RunError: there is no run, it is of a newer version, or damaged.
        ConfigError, DataError: its recipe or its vocabulary cannot be used.
    """
    if not is_run(path):
        what = f"has no {RECIPE}" if path.is_dir() else "does not exist"
        raise RunError(f"{path} is not a run: it {what}")
    begun_with = card.read_environment(path)
    config = parse_recipe(read_recipe(path / RECIPE), str(path / RECIPE))
    tokenizer = Tokenizer.load(path / TOKENIZER)
    if begun_with.get("tokenizer", found := digest((path / TOKENIZER).read_bytes())) != found:
        raise RunError(
            f"{path / TOKENIZER} is not the one that the run was begun with: it is damaged, or of another run"
        )
    return config, tokenizer, begun_with


def digest(content: bytes) -> str:
    """The SHA-256 of a file, as `environment.json` has it."""
    return hashlib.sha256(content).hexdigest()


def check_recipe(path: Path, config: Config, before: dict[str, Any]) -> None:
    """Refuse a recipe that no longer says what the weights are of, or how a text becomes tokens.

    `before` has the dotted keys of when training last went on, as `flat` gives them. Which files are read, how training
    goes and how text is drawn is free.

    Raises:
        RunError: another key differs; names it.
    """
    now = flat(config)
    changed = [key for key in before if _decides(key) and key in now and now[key] != before[key]]
    if changed:
        told = "; ".join(f"{key}: was {before[key]!r}, now {now[key]!r}" for key in changed)
        raise RunError(f"{path / RECIPE} is not what the model was trained by: {told}. Put that back")


def _decides(key: str) -> bool:
    section, _, name = key.rpartition(".")
    return section in ("", "model", "data") and name not in _FREE and not name.endswith(("dropout", "drop"))


def compared(path: Path, split: str, corpus: str) -> str:
    """SAME or CHANGED: whether a split, by its corpus' digest, is what it was when the run began; or UNKNOWN."""
    before = card.read_environment(path).get("texts", {}) if (path / ENVIRONMENT).exists() else {}
    if split not in before:
        return UNKNOWN
    return SAME if before[split] == corpus else CHANGED
