"""Tables of numbers and addresses that compiled code reads: constants, and slots that each call fills."""

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
"""The numbers that every call passes, the first three where C expects them; the addresses of its arrays follow.

As in `writer.HEADER`, and: `steps`, `rows`, `time` of `work_layout.Rows`; the number of `threads` of the loop, and of
the function after it; the start of the working `memory`; the `workspace` per thread in it, for that function.
"""


class Slot(NamedTuple):
    """A number in a table that a call fills: call[at] + plus + each · steps.

    Attributes:
        at: index of a number of the call; −1 for none.
        plus: constant to add.
        each: number to add for every step.
    """

    at: int
    plus: int = 0
    each: int = 0

    def behind(self, plus: int, each: int = 0) -> Slot:
        """The slot with an additional offset in bytes."""
        return Slot(self.at, self.plus + plus, self.each + each)


NULL = Slot(-1)


def argument(name: str) -> Slot:
    """The slot of a name in `ARGUMENTS`."""
    return Slot(ARGUMENTS.index(name))


class CallTable:
    """The tables of a call.

    Args:
        loop: address of the loop function, 0 for none.
        table: its table of constants and slots.
        jobs: index in the table of the descriptions of matrices to pack, 6 slots each.
        packs: number of these matrices.
        then: address of the function to run after the loop, 0 for none.
        then_table: the table of that function.

    Attributes:
        address: address for C, valid as long as this object lives.
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
