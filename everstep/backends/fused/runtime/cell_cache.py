"""The engine's cache of a cell, stored on the cell itself."""

from __future__ import annotations

import weakref
from time import monotonic as clock
from typing import Any

from torch import Tensor

from everstep.abstract import AbstractCell
from everstep.backends.fused.runtime.family import Family
from everstep.backends.fused.runtime.program import Program
from everstep.backends.protocol import Refusal
from everstep.tracing.guards import Snapshot, changed, modules, parameters
from everstep.tracing.side_effects import HOME

KEPT = 8
"""Most programs per cell."""
_PATIENCE = 8.0
"""Seconds of compilation per cell before compilation is limited."""
_SHARE = 20
"""Beyond the limit, a program is compiled only after this multiple of the last compilation time; until then PyTorch's
loop runs."""
_LARGE = 1 << 26
"""Most bytes of tensors that cached programs own; the last program may own more."""
EFFECTS = 3
"""Number of observed side effects after which a step is assumed to always have them."""


class CellCache:
    """The cache of a cell.

    It is stored in the cell's `__dict__`, so that it is freed with the cell. A copy of the cell has None in its place,
    or the cache of another owner, which is ignored.

    Attributes:
        owner: the cell.
        snapshot: the last snapshot; None if the cell must be inspected at each call.
        effects: the observed side effects of its step, in eval mode and in training; "" for none.
    """

    __slots__ = ("_again", "_made", "_programs", "_spent", "effects", "owner", "snapshot")

    def __init__(self, cell: AbstractCell):
        self.owner = weakref.ref(cell)
        self.snapshot: Snapshot | None = None
        self._programs: dict[Any, Program | Family | Refusal] = {}
        self._made, self._spent, self._again = 0, 0.0, 0.0
        self.effects: tuple[list[str], list[str]] = [], []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def parameters(self, cell: AbstractCell) -> list[Tensor]:
        """The parameters and buffers that programs receive."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.parameters is None:
            return parameters(modules(cell))
        return snapshot.parameters

    def program(self, key: Any) -> Program | Family | Refusal | None:
        """The program with this fingerprint, or None."""
        return self._programs.get(key)

    def hurried(self, key: Any) -> str | None:
        """A description of the attribute that changes too often to compile for now; None to compile."""
        if (self._made < KEPT and self._spent < _PATIENCE) or clock() > self._again or not self._programs:
            return None
        return changed(next(reversed(self._programs)), key)

    def keep(self, key: Any, program: Program | Family | Refusal, seconds: float) -> None:
        """Store a program that took `seconds` to compile; replaces the oldest if there are too many."""
        self._made += 1
        self._spent += seconds
        self._again = clock() + _SHARE * seconds
        if len(self._programs) == KEPT:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = program
        while len(self._programs) > 1 and sum(map(_bytes, self._programs.values())) > _LARGE:
            del self._programs[next(iter(self._programs))]


def cell_cache(cell: AbstractCell) -> CellCache:
    """The cache of a cell."""
    found: CellCache | None = cell.__dict__.get(HOME)
    if found is None or found.owner() is not cell:
        found = vars(cell)[HOME] = CellCache(cell)
    return found


def _bytes(program: Program | Family | Refusal) -> int:
    """Bytes of the tensors that a program owns."""
    whole = program.first if isinstance(program, Family) else program
    return 0 if isinstance(whole, Refusal) else whole.outside.bytes
