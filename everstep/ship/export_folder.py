"""The folder of an exported run. It is written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everstep.errors import RunError
from everstep.runs.recipe import FORMAT as RECIPE_FORMAT
from everstep.storage.files import TEMPORARY, explained, remove, rename, write_file
from everstep.storage.reading import parse_json, read_small, reason

CARD, RECIPE = "export.json", "recipe.yaml"
FORMAT = 1
_ENTRIES = {"to": str, "files": dict, "forms": dict, "recipe_format": int}
LARGEST_CARD = 1 << 26
"""Most bytes of a card."""


def is_export(folder: Path) -> bool:
    """Whether the folder holds an exported run."""
    return (folder / CARD).is_file()


@contextmanager
def made(out: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `out` if the block succeeds, else removed.

    Raises:
        RunError: `out` exists or cannot be written.
    """
    if os.path.lexists(out):
        raise RunError(f"{out} exists and is never overwritten; give another folder (--out), or delete it")
    aside = out.with_name(f"{TEMPORARY}{out.name}.{os.getpid()}")
    with explained(out.parent, "export again"):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove(aside)  # of a killed process with the same id
        aside.mkdir()
    try:
        yield aside
        with explained(out.parent, "export again"):
            rename(aside, out)
    finally:
        remove(aside)


def write(folder: Path, name: str, data: bytes) -> None:
    """Write a file of the temporary folder."""
    with explained(folder.parent, "export again"):
        write_file(folder / name, data)


def card_bytes(card: dict[str, Any]) -> bytes:
    """The card as JSON in UTF-8."""
    return (json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an exported run.

    Raises:
        RunError: the card is missing, damaged, or of a newer version.
    """
    path = folder / CARD
    try:
        card = parse_json(read_small(path, LARGEST_CARD))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {reason(error) if isinstance(error, OSError) else error}") from None
    if not isinstance(card, dict) or not isinstance(card.get("format"), int):
        raise RunError(f"{path} is no card of an exported run")
    if card["format"] > FORMAT:
        raise RunError(f"{folder} is of a newer version of everstep (format {card['format']}; this one reads {FORMAT})")
    for key, kind in _ENTRIES.items():
        if not isinstance(card.get(key), kind):
            raise RunError(f"{path} is no card of an exported run: it lacks {key!r}")
    if card["recipe_format"] > RECIPE_FORMAT:
        raise RunError(
            f"{folder} has a recipe of a newer version of everstep (format {card['recipe_format']}; this one reads "
            f"formats up to {RECIPE_FORMAT})"
        )
    used = [form.get("file") if isinstance(form, dict) else None for form in card["forms"].values()]
    for name in (*card["files"], *used):
        if name not in card["files"] or Path(name).anchor or ".." in Path(name).parts:
            raise RunError(f"{path} names {name!r}, which is no file of the folder")
    return card
