"""Tables of a call are what their slots say of what the call brings."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everstep.backends.fused.backend import _ragged
from everstep.native import toolchain
from everstep.native.call_table import ARGUMENTS, NULL, CallTable, Slot, argument
from everstep.native.kernels import kernels

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def test_the_numbers_that_c_reads_come_first() -> None:
    assert ARGUMENTS[:3] == ("steps", "threads", "then_threads")


def test_entries() -> None:
    seen: list[tuple[str, list[int]]] = []

    def note(what: str, size: int) -> ctypes._FuncPointer:
        return BODY(lambda data, i, n: seen.append((what, [*(ctypes.c_int64 * size).from_address(data)])))

    loop, then = note("loop", 5), note("then", 2)
    places = [ctypes.cast(body, ctypes.c_void_p).value or 0 for body in (loop, then)]
    end = Slot(len(ARGUMENTS))
    table = [7, argument("rows"), end.behind(5), end.behind(5, 2), NULL]
    made = CallTable(places[0], table, then=places[1], then_table=[Slot(-1, 1, 3), end])
    numbers = (ctypes.c_int64 * (len(ARGUMENTS) + 1))(10, 1, 1, 4)
    numbers[len(ARGUMENTS)] = 100
    kernels(torch.float32).call(made.address, ctypes.addressof(numbers))
    assert seen == [("loop", [7, 4, 105, 125, 0]), ("then", [31, 100])]


def test_turns_are_not_seen_before_they_are_made() -> None:
    """While C makes them, another thread of Python may run the same rows."""
    rows = _ragged(torch.tensor([3, 9, 4]), 9)
    seen: list[int] = []
    library = SimpleNamespace(es_assign=lambda address: seen.append(len(rows._assignments)))
    fake: Any = SimpleNamespace(library=library)
    rows.assignment(fake, 2, True)
    rows.assignment(fake, 2, True)
    assert seen == [0]
