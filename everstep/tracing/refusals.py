"""Why a step cannot be followed, in the words and by the line of whoever wrote it."""

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
"""Files whose lines are none of the user's."""


class Untraceable(Exception):
    """A step that cannot be followed; the message says which operation stood in the way, and where."""


class Impure(Untraceable):
    """A step that has another effect than its results: only the loop that calls it at every step has the same."""


def callers() -> Iterator[tuple[str, int]]:
    """File and line of the code that runs, the innermost first."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def users_line(frames: Iterable[tuple[str, int]]) -> str:
    """ " (FILE:LINE)" of the innermost frame that is the user's."""
    found = next((f for f in frames if not f[0].startswith(_NOT_THE_USERS)), None)
    return f" ({found[0]}:{found[1]})" if found else ""


def size_told(size: int, rows: int) -> str:
    """A size of a step that is traced with so many rows, in words."""
    if not size or size % rows:
        return str(size)
    return "batch" if size == rows else f"{size // rows}·batch"


def in_words(text: str, rows: int) -> str:
    """What PyTorch or the user says of tensors that have so many rows, without that number, which is nobody's."""
    text = re.sub(r"(?<=\d)x(?=\d)", " x ", text)
    return re.sub(r"(?<![\d.])\d+(?![\d.]*\d)", lambda found: size_told(int(found[0]), rows), text)


def node_told(node: fx.Node) -> str:
    """A value of a step in words."""
    return str(node.meta.get("told") or f"what {operation_name(node.target)} gives")
