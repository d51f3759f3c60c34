"""What a backend is: one way to run a cell over time, equal in result to `reference.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from everstep.abstract import AbstractCell
from everstep.state import State

Run: TypeAlias = Callable[[State], tuple[Tensor, State]]
"""From the state before the first step to outputs (batch, time, output_size) and the state after the last. It may be
called more than once, and whatever else was prepared or run in between."""


class Refusal(str):
    """Why a backend cannot run a call, in words that a user understands."""


class Backend(Protocol):
    """One way to run a cell over time."""

    name: str

    def prepare(self, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> Run | Refusal:
        """What runs the cell over these inputs, or why this backend cannot; time ≥ 1, arguments checked."""

    def slower(self, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
        """The reason why another backend is measured to be faster here, or None. `auto` heeds it."""
