"""The two tables of a call, as slots that C fills with the numbers of each call (`c_tables.py`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from everstep.native.c_tables import CallHeader, Entry, Slot, int64_array


class CallTable:
    """What a call runs, with the slots of its tables.

    Args:
        loop: address of the loop function, 0 for none.
        table: its table of constants and slots.
        jobs: index in the table of the descriptions of matrices to pack (`Packing`).
        packs: number of these matrices.
        then: address of the function to run after the loop, 0 for none.
        then_table: the table of that function.

    Attributes:
        address: address for C, valid as long as this object lives.
    """

    def __init__(
        self,
        loop: int,
        table: Sequence[Entry],
        jobs: int = 0,
        packs: int = 0,
        then: int = 0,
        then_table: Sequence[Entry] = (),
    ):
        numbers: list[Entry] = [*CallHeader(loop, len(table), jobs, packs, then, len(then_table))]
        for entry in (*table, *then_table):
            numbers += entry if isinstance(entry, Slot) else Slot(-1, entry)
        self._numbers = int64_array(numbers)
        self.address = ctypes.addressof(self._numbers)
