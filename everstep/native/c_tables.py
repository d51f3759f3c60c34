"""The tables that compiled code reads, each defined once: a named tuple here, and the C++ struct that `declared` makes.

Every entry takes eight bytes. The annotation of a field says what C++ reads there; `T` is the kind of number that is
computed with. A field that is added here is there on both sides, under its name.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, TypeAlias, get_type_hints


class Slot(NamedTuple):
    """An entry that is filled in by each call.

    Attributes:
        at: which number of the call; −1: none.
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

Entry: TypeAlias = int | Slot
Count: TypeAlias = Entry
Integers: TypeAlias = Annotated[Entry, "const int64_t*"]
IntegersOut: TypeAlias = Annotated[Entry, "int64_t*"]
Flags: TypeAlias = Annotated[Entry, "const uint8_t*"]
Numbers: TypeAlias = Annotated[Entry, "const T*"]
NumbersOut: TypeAlias = Annotated[Entry, "T*"]
BytesOut: TypeAlias = Annotated[Entry, "char*"]
Address: TypeAlias = Annotated[Entry, "void*"]
Body: TypeAlias = Annotated[Entry, "Body"]
Wait: TypeAlias = Annotated[Entry, "Wait"]


def int64_array(*tables: Iterable[Any]) -> ctypes.Array[ctypes.c_int64]:
    """Tables without slots, one after the other, as C reads them."""
    numbers = [number for table in tables for number in table]
    return (ctypes.c_int64 * len(numbers))(*numbers)


_READ = """\
typedef void (*Body)(void* table, int64_t thread, int64_t threads);
typedef void (*Wait)(void* gate, int64_t threads);

template <class Table> constexpr int64_t ENTRIES = sizeof(Table) / sizeof(int64_t);

template <class Table> inline Table table_at(const void* entries) {
  Table table;
  __builtin_memcpy(&table, entries, sizeof table);
  return table;
}
"""


def declared(*tables: type) -> str:
    """C++ with the structs of these tables and the enums of these enumerations, and with how to read them."""
    parts = [_enum(table) if issubclass(table, IntEnum) else _struct(table) for table in tables]
    return "\n".join(["namespace {", "", _READ, *parts, "}  // namespace", ""])


def _struct(table: type) -> str:
    """One struct: a template where it has pointers to numbers."""
    hints = get_type_hints(table, include_extras=True)
    types = {name: getattr(hint, "__metadata__", ("int64_t",))[0] for name, hint in hints.items()}
    fields = "".join(f"  {type_} {name};\n" for name, type_ in types.items())
    numbers = any(re.search(r"\bT\b", type_) for type_ in types.values())
    template, example = ("template <class T> ", "<double>") if numbers else ("", "")
    check = f'static_assert(ENTRIES<{table.__name__}{example}> == {len(types)}, "eight bytes an entry");'
    return f"{template}struct {table.__name__} {{\n{fields}}};\n{check}\n"


def _enum(values: type[IntEnum]) -> str:
    members = ", ".join(f"{member.name} = {member.value}" for member in values)
    return f"enum {values.__name__} : int64_t {{ {members} }};\n"


# ------------------------------------------------------------------------------------------------------------- a call


class CallHeader(NamedTuple):
    """What a call runs; behind it come the slots of its two tables (`call_table.py`).

    Attributes:
        loop, entries: what runs first, 0 for nothing, and the number of entries of its table.
        jobs, packs: in which entry of it `Packing` begins, and of how many matrices.
        then, then_entries: what runs after that, 0 for nothing, and the number of entries of its table.
    """

    loop: Body
    entries: Count
    jobs: Count
    packs: Count
    then: Body
    then_entries: Count


class Arguments(NamedTuple):
    """The numbers that every call brings; behind them come the addresses of its arrays.

    Attributes:
        steps, rows, time: of `work_layout.Rows`.
        threads, then_threads: on how many threads the loop runs, and what comes then.
        starts, order: rows `order[starts[i]]` … `order[starts[i + 1] - 1]` belong to thread i.
        offset, length, resets: where the steps of a row begin, how many it has, and before which its state is reset.
        outer: where a row begins in the caller's arrays.
        gate: the memory of the threads' barrier.
        memory: where the working memory begins.
        split: 1 where threads share the units of all rows, 0 where each owns rows.
        thread_stride: numbers of working memory from one thread to the next.
        block: rows that are computed together.
        chunk: the number of steps for which the input projections are computed at once; 0: not by the loop.
        near, near_stride: null, or memory for those of one chunk, and its numbers for each thread.
        nontemporal: 1 where outputs go past the caches.
        workspace: numbers of working memory for each thread of what comes then.
        turn: 0 where the products of the first step read their matrices from the begin, 1 from the end; later steps
            alternate, and so do calls with the same numbers, since C writes the next turn here.
    """

    steps: Count
    threads: Count
    then_threads: Count
    rows: Count
    time: Count
    starts: Integers
    order: Integers
    offset: Integers
    length: Integers
    resets: Flags
    outer: Integers
    gate: Address
    memory: Address
    split: Count
    thread_stride: Count
    block: Count
    chunk: Count
    near: Address
    near_stride: Count
    nontemporal: Count
    workspace: Count
    turn: Count


class Routines(NamedTuple):
    """What a compiled loop calls: products, of panels of so many columns, and the barrier."""

    gemm: Address
    panel: Count
    barrier: Wait


def argument(name: str) -> Slot:
    """The slot of one of `Arguments`."""
    return Slot(Arguments._fields.index(name))


# ------------------------------------------------------------------------------------------- products of many rows


class Packing(NamedTuple):
    """A matrix to pack: w (depth, columns), with the strides of both, and where it goes."""

    w: Numbers
    depth: Count
    columns: Count
    by_depth: Count
    by_column: Count
    packed: NumbersOut


class RowsProduct(NamedTuple):
    """out = a · w for rows a (rows, depth) and a packed matrix (depth, columns); rows are `by_a` and `by_out` apart."""

    a: Numbers
    by_a: Count
    rows: Count
    packed: Numbers
    depth: Count
    columns: Count
    out: NumbersOut
    by_out: Count


class SumsHeader(NamedTuple):
    """How many of `OverSteps`, `OverThreads` and `Padding` follow, and what they share.

    Attributes:
        products, totals, paddings: their numbers.
        memory, workspace: working memory, and how many numbers of it are each thread's.
        offset, length, resets, rows, time: of `Arguments`.
    """

    products: Count
    totals: Count
    paddings: Count
    memory: NumbersOut
    workspace: Count
    offset: Integers = 0
    length: Integers = 0
    resets: Flags = 0
    rows: Count = 0
    time: Count = 0


class Way(IntEnum):
    """Which row of a matrix belongs to a step.

    `ALL`: that of the same number; `USED`: that of the step's place in the caller's arrays; `BEFORE`, `USED_BEFORE`:
    that of the step before it, in either order.
    """

    ALL = 0
    USED = 1
    BEFORE = 2
    USED_BEFORE = 3


class OverSteps(NamedTuple):
    """gᵀ·x, summed over all steps (a weight's gradient).

    Attributes:
        g, by_g, x, by_x: (steps, rows) and (steps, columns), and the distance of their rows.
        steps, rows, columns: their sizes.
        out, by_out: (rows, columns), where the sum goes, and the distance of its rows.
        way: which row of x belongs to a step: a `Way`.
        others, by_others: other rows of x, and their distance: what is before the first step of rows, then what is
            before their resets.
    """

    g: Numbers
    by_g: Count
    x: Numbers
    by_x: Count
    steps: Count
    rows: Count
    columns: Count
    out: NumbersOut
    by_out: Count
    way: Count = Way.ALL
    others: Numbers = NULL
    by_others: Count = 0


class OverThreads(NamedTuple):
    """A sum of which each thread has a part.

    Attributes:
        parts, threads, by: (threads, numbers), how many there are, and their distance.
        size: how many numbers are meant.
        out: (size,), where the sum goes.
    """

    parts: Numbers
    threads: Count
    by: Count
    size: Count
    out: NumbersOut


class Padding(NamedTuple):
    """Zeros behind the steps of each row of an array (rows, time, …); `each`: bytes of a step."""

    array: BytesOut
    each: int


# ------------------------------------------------------------------------------------------------------------- rows


class RaggedCopy(NamedTuple):
    """Steps without padding, to rows of `time` steps with zeros behind their steps, or `back`.

    Attributes:
        packed, padded: the two arrays.
        offset, length, rows, time: of `Arguments`.
        each: bytes of a step.
        back: 1: from `padded` to `packed`.
    """

    packed: BytesOut
    padded: BytesOut
    offset: Integers
    length: Integers
    rows: Count
    time: Count
    each: Count
    back: Count


class Assignment(NamedTuple):
    """Which rows each thread computes.

    Attributes:
        order, length: rows, longest first, and their steps.
        rows, threads: how many there are.
        dense: 1 where rows are multiplied by a matrix, which has to be read as well.
        starts: (threads + 1 + 2 · rows,): where in what follows the rows of each thread begin, and their end; all rows;
            scratch.
    """

    order: Integers
    length: Integers
    rows: Count
    threads: Count
    dense: Count
    starts: IntegersOut


ENGINE = (
    *(CallHeader, Slot, Arguments, Packing, RowsProduct, SumsHeader, Way, OverSteps, OverThreads, Padding),
    *(RaggedCopy, Assignment),
)
"""What `kernels.cpp` reads."""
