"""What the engine knows of a cell, kept on the cell itself."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from everstep.cell import Cell
from everstep.scanning.fused import toolchain
from everstep.scanning.fused.family import Family
from everstep.scanning.fused.fingerprint import Snapshot, changed, modules, parameters
from everstep.scanning.fused.program import Program
from everstep.scanning.writes import HOME

KEPT = 8
"""Programs that are kept for one cell."""
EFFECTS = 3
"""How often a step is seen to write something before it is believed always to do so."""


class Known:
    """What the engine knows of a cell.

    In the cell's own dictionary it goes when the cell goes, whatever refers to what. A copy of the cell knows nothing:
    it has None in its place, or another's, which counts for nothing.

    Attributes:
        owner: the cell.
        snapshot: as it last was; None if it should be looked at each time.
        effects: what its step was seen to write, in eval mode and in training; "": nothing.
    """

    __slots__ = ("_made", "_programs", "effects", "owner", "snapshot")

    def __init__(self, cell: Cell):
        self.owner = weakref.ref(cell)
        self.snapshot: Snapshot | None = None
        self._programs: dict[Any, Program | Family | str] = {}
        self._made = 0
        self.effects: tuple[list[str], list[str]] = [], []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def parameters(self, cell: Cell) -> list[Tensor]:
        """What programs are given."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.parameters is None:
            return parameters(modules(cell))
        return snapshot.parameters

    def program(self, key: Any) -> Program | Family | str | None:
        """The one with this fingerprint."""
        return self._programs.get(key)

    def keep(self, cell: Cell, key: Any, program: Program | Family | str) -> None:
        """A new one, in place of the oldest if there are many."""
        self._made += 1
        what = changed(next(reversed(self._programs)), key) if self._made > KEPT else None
        if what is not None:
            _tell(cell, what)
        if len(self._programs) == KEPT:
            del self._programs[next(iter(self._programs))]
        self._programs[key] = program


def known(cell: Cell) -> Known:
    """What is known of the cell."""
    found: Known | None = cell.__dict__.get(HOME)
    if found is None or found.owner() is not cell:
        found = vars(cell)[HOME] = Known(cell)
    return found


def _tell(cell: Cell, what: str) -> None:
    text = (
        f"{cell._get_name()} is traced and compiled again and again, since {what} keeps changing. "
        "What changes from call to call should be an input, a buffer or part of the state."
    )
    toolchain.notice(text, text)
