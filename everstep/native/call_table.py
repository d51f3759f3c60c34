"""What compiled code is told: forms of tables, known once and for all, that C fills in with what each call brings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

BRINGS = (
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
    "share",
    "block",
    "chunk",
    "near",
    "near_share",
    "far",
    "room",
)
"""The numbers that every call brings, the first three where C reads them; after them come addresses of its arrays.

As in `cpu.HEADER`, and: `steps`, `rows`, `time` of `table.Rows`; on how many `threads` the loop runs and what comes
then; where the working `memory` begins; `room` in it for each thread, for what comes then.
"""


class Entry(NamedTuple):
    """A number in a table.

    Attributes:
        at: the place of one that the call brings; −1: none.
        plus: what is added to it.
        each: what is added to it for every step.
    """

    at: int
    plus: int = 0
    each: int = 0

    def behind(self, plus: int, each: int = 0) -> Entry:
        """Further on in memory, in bytes."""
        return Entry(self.at, self.plus + plus, self.each + each)


NULL = Entry(-1)


def brought(name: str) -> Entry:
    """One of `BRINGS`."""
    return Entry(BRINGS.index(name))


class Form:
    """The tables of a call.

    Args:
        loop: the address of what runs, 0 for nothing.
        table: its table: numbers that are known, and entries.
        jobs: where in it the matrices that are to be packed are described, 6 entries each.
        packs: how many these are.
        then: the address of what runs after that, 0 for nothing.
        then_table: its table.

    Attributes:
        address: where C finds it, as long as the form lives.
    """

    def __init__(
        self,
        loop: int,
        table: Sequence[int | Entry],
        jobs: int = 0,
        packs: int = 0,
        then: int = 0,
        then_table: Sequence[int | Entry] = (),
    ):
        numbers = [loop, len(table), jobs, packs, then, len(then_table)]
        for entry in (*table, *then_table):
            numbers += entry if isinstance(entry, Entry) else (-1, entry, 0)
        self._numbers = (ctypes.c_int64 * len(numbers))(*numbers)
        self.address = ctypes.addressof(self._numbers)
