"""Tables of a call are what their slots say of what the call brings."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everstep.backends.fused.backend import _ragged
from everstep.backends.fused.codegen.writer import Code
from everstep.backends.fused.runtime.work_layout import Rows, layout, numbers
from everstep.heads.compiled_chain import ChainCall
from everstep.native import build, toolchain
from everstep.native.c_tables import ENGINE, NULL, Arguments, Routines, Slot, Way, argument, declared
from everstep.native.call_table import CallTable
from everstep.native.kernels import kernels
from everstep.trees.compiled_tree_lstm import TreeCall
from everstep.wirings.reservoir.loop import ReservoirLoop

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


TABLES: list[Any] = [
    table for table in (*ENGINE, Routines, ChainCall, TreeCall, ReservoirLoop) if issubclass(table, tuple)
]  # fmt: skip


@pytest.fixture(scope="module")
def fields() -> ctypes.CDLL:
    """For each table a function that gives the bits of a field of its struct, named in C++, or −1."""
    lines = []
    for table in TABLES:
        struct = table.__name__ + (
            "<double>" if f"template <class T> struct {table.__name__} " in declared(table) else ""
        )
        body = "".join(
            f"  if (k == {k}) {{ int64_t bits; __builtin_memcpy(&bits, &t.{name}, 8); return bits; }}\n"
            for k, name in enumerate(table._fields)
        )
        head = f'extern "C" int64_t es_{table.__name__}(const void* p, int64_t k) {{'
        lines.append(f"{head}\n  const auto t = table_at<{struct}>(p);\n{body}  return -1;\n}}\n")
    source = "#include <cstdint>\n" + declared(*TABLES) + "".join(lines)
    library = build.load(source, "tables", [f"es_{table.__name__}" for table in TABLES])
    for table in TABLES:
        function = getattr(library, f"es_{table.__name__}")
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int64
    return library


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_python_and_c_agree_about_every_field(fields: ctypes.CDLL, table: Any) -> None:
    values = [1000 + 7 * k for k in range(len(table._fields))]
    entries = (ctypes.c_int64 * len(values))(*table(*values))
    read = getattr(fields, f"es_{table.__name__}")
    assert [read(ctypes.addressof(entries), k) for k in range(len(values))] == values


def test_enumerations_are_written_with_their_values() -> None:
    assert "enum Way : int64_t { ALL = 0, USED = 1, BEFORE = 2, USED_BEFORE = 3 };" in declared(Way)


def test_a_call_brings_each_number_under_its_name() -> None:
    library, count = kernels(torch.float32), 5
    order = torch.arange(count)
    rows = Rows(order, 10 * order, torch.full((count,), 4), 20 * order, count, 20, 4).reset_at(torch.zeros(20).bool())
    code = Code("", (), 16, ((8, 8),), (), 4, 0)
    work = layout(library, code, count, 20, True, False, False, 2)
    gate = ctypes.create_string_buffer(8)
    brought = numbers(library, work, rows, 4096, then_threads=3, workspace=77, gate=gate)
    starts, assigned = rows.assignment(library, work.threads, True)
    expected = {
        **{name: getattr(work, name) for name in ("threads", "split", "thread_stride", "block", "chunk")},
        **{name: getattr(work, name) for name in ("near_stride", "nontemporal")},
        "steps": 20,
        "rows": count,
        "time": 4,
        "then_threads": 3,
        "workspace": 77,
        "turn": 0,
        "memory": 4096,
        "near": 0,
        **dict(zip(("offset", "length", "resets", "outer"), rows.addresses, strict=True)),
        "starts": starts,
        "order": assigned,
        "gate": ctypes.addressof(gate),
    }
    assert Arguments(*brought)._asdict() == expected


def test_entries() -> None:
    seen: list[tuple[str, list[int]]] = []

    def note(what: str, size: int) -> ctypes._FuncPointer:
        return BODY(lambda data, i, n: seen.append((what, [*(ctypes.c_int64 * size).from_address(data)])))

    loop, then = note("loop", 5), note("then", 2)
    places = [ctypes.cast(body, ctypes.c_void_p).value or 0 for body in (loop, then)]
    end = Slot(len(Arguments._fields))
    table = [7, argument("rows"), end.behind(5), end.behind(5, 2), NULL]
    made = CallTable(places[0], table, then=places[1], then_table=[Slot(-1, 1, 3), end])
    given = Arguments(*[0] * len(Arguments._fields))._replace(steps=10, threads=1, then_threads=1, rows=4)
    brought = (ctypes.c_int64 * (len(given) + 1))(*given, 100)
    kernels(torch.float32).call(made.address, ctypes.addressof(brought))
    assert seen == [("loop", [7, 4, 105, 125, 0]), ("then", [31, 100])]
    turns = [brought[argument("turn").at]]
    kernels(torch.float32).call(made.address, ctypes.addressof(brought))
    assert [*turns, brought[argument("turn").at]] == [1, 0]


def test_turns_are_not_seen_before_they_are_made() -> None:
    """While C makes them, another thread of Python may run the same rows."""
    rows = _ragged(torch.tensor([3, 9, 4]), 9)
    seen: list[int] = []
    library = SimpleNamespace(es_assign=lambda address: seen.append(len(rows._assignments)))
    fake: Any = SimpleNamespace(library=library)
    rows.assignment(fake, 2, True)
    rows.assignment(fake, 2, True)
    assert seen == [0]
