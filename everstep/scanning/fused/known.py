"""What the engine knows of a cell, kept on the cell itself."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from everstep.cell import Cell
from everstep.scanning.fused.fingerprint import HOME, Snapshot, modules, parameters
from everstep.scanning.fused.program import Program


class Known:
    """What the engine knows of a cell.

    In the cell's own dictionary it goes when the cell goes, whatever refers to what. A copy of the cell knows nothing:
    it has None in its place, or another's, which counts for nothing.

    Attributes:
        owner: the cell.
        snapshot: as it last was; None if it should be looked at each time.
    """

    __slots__ = ("_programs", "owner", "snapshot")

    def __init__(self, cell: Cell):
        self.owner = weakref.ref(cell)
        self.snapshot: Snapshot | None = None
        self._programs: dict[Any, Program | str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def parameters(self, cell: Cell) -> list[Tensor]:
        """What programs are given."""
        return parameters(modules(cell)) if self.snapshot is None else self.snapshot.parameters

    def program(self, key: Any) -> Program | str | None:
        """The one with this fingerprint."""
        return self._programs.get(key)

    def keep(self, key: Any, program: Program | str) -> None:
        """A new one."""
        self._programs[key] = program


def known(cell: Cell) -> Known:
    """What is known of the cell."""
    found: Known | None = vars(cell).get(HOME)
    if found is None or found.owner() is not cell:
        found = vars(cell)[HOME] = Known(cell)
    return found
