"""The folder of an exported run: it is there whole, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from everstep.errors import RunError
from everstep.storage.files import TEMPORARY, explained, remove, rename, write_file
from everstep.storage.reading import parse_json, read_small, reason

CARD, RECIPE = "export.json", "recipe.yaml"
FORMAT = 1
_LARGEST = 1 << 26


def is_export(folder: Path) -> bool:
    """Whether a run has been exported there."""
    return (folder / CARD).is_file()


@contextmanager
def made(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well; else nothing is left.

    Raises:
        RunError: there is something, or nothing can be written there.
    """
    if os.path.lexists(out):
        raise RunError(f"{out} exists and is never overwritten; give another folder (--out), or delete it")
    aside = out.with_name(f"{TEMPORARY}{out.name}.{os.getpid()}")
    with explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
    try:
        yield aside
        with explained(out.parent):
            rename(aside, out)
    finally:
        remove(aside)


def write(folder: Path, name: str, data: bytes) -> None:
    """A file of the folder."""
    with explained(folder):
        write_file(folder / name, data)


def card_bytes(card: dict[str, Any]) -> bytes:
    """The card as it is written."""
    return (json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an exported run.

    Raises:
        RunError: it is damaged, or of a newer version.
    """
    path = folder / CARD
    try:
        card = parse_json(read_small(path, _LARGEST))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {reason(error) if isinstance(error, OSError) else error}") from None
    if not isinstance(card, dict) or not isinstance(card.get("format"), int) or "forms" not in card:
        raise RunError(f"{path} is no card of an exported run")
    if card["format"] > FORMAT:
        raise RunError(f"{folder} is of a newer version of everstep (format {card['format']}; this one reads {FORMAT})")
    return card
