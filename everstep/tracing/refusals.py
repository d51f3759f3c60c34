"""Reasons why a step cannot be traced, in the user's terms and with the user's line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import fx

from everstep.tracing.operations import operation_name

_PACKAGE = Path(__file__).parents[1]
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    *(str(_PACKAGE / part) for part in ("tracing", "backends", "native", "abstract.py", "cell.py", "equation.py")),
)
"""Folders whose files are not the user's."""


class Untraceable(Exception):
    """A step cannot be traced; the message names the operation and its line."""


class Impure(Untraceable):
    """A step has side effects, which only a loop that calls the step at every time preserves."""


def callers() -> Iterator[tuple[str, int]]:
    """File and line of the running frames, innermost first."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def users_line(frames: Iterable[tuple[str, int]]) -> str:
    """The innermost frame of the user, as " (FILE:LINE)"; "" if there is none."""
    found = next((f for f in frames if not f[0].startswith(_NOT_THE_USERS)), None)
    return f" ({found[0]}:{found[1]})" if found else ""


def size_told(size: int, rows: int) -> str:
    """A description of a size in a step traced with `rows` rows."""
    if not size or size % rows:
        return str(size)
    return "batch" if size == rows else f"{size // rows}·batch"


def in_words(text: str, rows: int) -> str:
    """A message about tensors with `rows` rows, with that arbitrary number replaced."""
    text = re.sub(r"(?<=\d)x(?=\d)", " x ", text)
    return re.sub(r"(?<![\d.])\d+(?![\d.]*\d)", lambda found: size_told(int(found[0]), rows), text)


def node_told(node: fx.Node) -> str:
    """A description of a value of a step."""
    return str(node.meta.get("told") or f"what {operation_name(node.target)} gives")
