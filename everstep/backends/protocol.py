"""The interface of a backend: a way to run a cell over time with the results of `reference.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from everstep.abstract import AbstractCell
from everstep.state import State

Run: TypeAlias = Callable[[State], tuple[Tensor, State]]
"""Maps the initial state to outputs (batch, time, output_size) and the final state. It may be called several times,
with other calls prepared or run in between."""


class Refusal(str):
    """The reason why a backend cannot run a call, as a message for users."""


class Backend(Protocol):
    """A way to run a cell over time."""

    name: str

    def prepare(self, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> Run | Refusal:
        """A run of the cell over these inputs, or the reason why not. Arguments are checked, and time ≥ 1."""

    def slower(self, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
        """The reason why another backend is known to be faster, or None; used by "auto"."""
