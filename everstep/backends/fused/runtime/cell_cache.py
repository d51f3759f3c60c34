"""What the engine knows of a cell, kept on the cell itself."""

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
"""Programs that are kept for one cell."""
_PATIENCE = 8.0
"""Seconds in all that making programs may take at once."""
_SHARE = 20
"""Beyond both, another one is made after so many times what the last has taken; meanwhile PyTorch's loop runs."""
_LARGE = 1 << 26
"""Bytes of tensors that kept programs have for themselves; the last one may have more."""
EFFECTS = 3
"""How often a step is seen to write something before it is believed always to do so."""


class CellCache:
    """What the engine knows of a cell.

    In the cell's own dictionary it goes when the cell goes, whatever refers to what. A copy of the cell knows nothing:
    it has None in its place, or another's, which counts for nothing.

    Attributes:
        owner: the cell.
        snapshot: as it last was; None if it should be looked at each time.
        effects: what its step was seen to write, in eval mode and in training; "": nothing.
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
        """What programs are given."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.parameters is None:
            return parameters(modules(cell))
        return snapshot.parameters

    def program(self, key: Any) -> Program | Family | Refusal | None:
        """The one with this fingerprint."""
        return self._programs.get(key)

    def hurried(self, key: Any) -> str | None:
        """Which attribute changes so often that no program is made for now, in words; None: one may be."""
        if (self._made < KEPT and self._spent < _PATIENCE) or clock() > self._again or not self._programs:
            return None
        return changed(next(reversed(self._programs)), key)

    def keep(self, key: Any, program: Program | Family | Refusal, seconds: float) -> None:
        """A new one, which took some seconds, in place of the oldest if there are many."""
        self._made += 1
        self._spent += seconds
        self._again = clock() + _SHARE * seconds
        if len(self._programs) == KEPT:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = program
        while len(self._programs) > 1 and sum(map(_bytes, self._programs.values())) > _LARGE:
            del self._programs[next(iter(self._programs))]


def cell_cache(cell: AbstractCell) -> CellCache:
    """What is known of the cell."""
    found: CellCache | None = cell.__dict__.get(HOME)
    if found is None or found.owner() is not cell:
        found = vars(cell)[HOME] = CellCache(cell)
    return found


def _bytes(program: Program | Family | Refusal) -> int:
    """Of tensors that are no parameters, which a program has for itself."""
    whole = program.first if isinstance(program, Family) else program
    return 0 if isinstance(whole, Refusal) else whole.outside.bytes
