"""Tables of numbers and addresses that compiled code reads: what is known once and for all, and slots for the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

ARGUMENTS = (
    "steps",
    "threads",
    "then_threads",
    "rows",
    "time",
    "starts",
    "order",
    "offset",
    "length",
    "resets",
    "outer",
    "gate",
    "memory",
    "split",
    "thread_stride",
    "block",
    "chunk",
    "near",
    "near_stride",
    "nontemporal",
    "workspace",
)
"""The numbers that every call brings, the first three where C reads them; after them come addresses of its arrays.

As in `writer.HEADER`, and: `steps`, `rows`, `time` of `work_layout.Rows`; on how many `threads` the loop runs and what
comes then; where the working `memory` begins; `workspace` in it for each thread, for what comes then.
"""


class Slot(NamedTuple):
    """A number in a table.

    Attributes:
        at: the place of one that the call brings; −1: none.
        plus: what is added to it.
        each: what is added to it for every step.
    """

    at: int
    plus: int = 0
    each: int = 0

    def behind(self, plus: int, each: int = 0) -> Slot:
        """Further on in memory, in bytes."""
        return Slot(self.at, self.plus + plus, self.each + each)


NULL = Slot(-1)


def argument(name: str) -> Slot:
    """One of `ARGUMENTS`."""
    return Slot(ARGUMENTS.index(name))


class CallTable:
    """The tables of a call.

    Args:
        loop: the address of what runs, 0 for nothing.
        table: its table: numbers that are known, and slots.
        jobs: where in it the matrices that are to be packed are described, 6 slots each.
        packs: how many these are.
        then: the address of what runs after that, 0 for nothing.
        then_table: its table.

    Attributes:
        address: where C finds it, as long as this lives.
    """

    def __init__(
        self,
        loop: int,
        table: Sequence[int | Slot],
        jobs: int = 0,
        packs: int = 0,
        then: int = 0,
        then_table: Sequence[int | Slot] = (),
    ):
        numbers = [loop, len(table), jobs, packs, then, len(then_table)]
        for slot in (*table, *then_table):
            numbers += slot if isinstance(slot, Slot) else (-1, slot, 0)
        self._numbers = (ctypes.c_int64 * len(numbers))(*numbers)
        self.address = ctypes.addressof(self._numbers)
