"""The one argument of the compiled loops: a table of sizes and pointers, with the memory that it points to."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.scanning.fused import cpu
from everstep.scanning.fused.pool import empty
from everstep.scanning.fused.steps import Ahead
from everstep.scanning.fused.threads import GATE, NOTHING, Kernels, Then, cache

_NEAR = 1 << 21
"""Bytes of the products ahead that a thread computes at once: they are read again while the cache has them."""
_STEPS = 14
"""Rows for which the products' inner loop is fastest."""
_ALONE = 1 << 22
"""Multiplications ahead that a thread does sooner than others are called."""
_LARGE = 1 << 22
"""Bytes of the matrices for products ahead above which all steps are multiplied at once."""
_FAR = (cache(3) or 1 << 25) // 2
"""Bytes of outputs that nothing is multiplied for, from which on they would only drive others out of the caches."""
_JOB = 6
"""Numbers that `es_run` needs to pack a matrix."""
_ROWS, _OUTER, _GATE, _MEMORY, _NEAR_AT = (
    cpu.HEADER.index(name) for name in ("order", "outer", "gate", "memory", "near")
)


class Places(NamedTuple):
    """(steps,) int64, of every step that there is.

    Attributes:
        used: its place in the caller's arrays.
        before: the place of the step before; −1 − i where row i starts, −1 − count − i at its resets.
        used_before: the same in the caller's arrays.
    """

    used: Tensor
    before: Tensor
    used_before: Tensor


@dataclass(frozen=True)
class Rows:
    """Which steps there are: row i has `length[i]` steps from place `offset[i]` on, and takes its turn by `order`.

    Attributes:
        order, offset, length: (batch,) int64; `order` sorts the lengths, longest first.
        resets: (steps,) uint8, or None.
        count: rows.
        steps: in all.
        time: steps of a row in the caller's arrays, with padding.
    """

    order: Tensor
    offset: Tensor
    length: Tensor
    resets: Tensor | None
    count: int
    steps: int
    time: int

    @property
    def whole(self) -> bool:
        """Whether no row has padding."""
        return self.steps == self.count * self.time

    @cached_property
    def addresses(self) -> tuple[int, int, int, int]:
        """Of `order`, `offset`, `length` and `resets`."""
        resets = 0 if self.resets is None else self.resets.data_ptr()
        return self.order.data_ptr(), self.offset.data_ptr(), self.length.data_ptr(), resets

    @cached_property
    def outer(self) -> Tensor:
        """(batch,) int64: where rows begin in the caller's arrays."""
        return torch.arange(self.count, device="cpu") * self.time

    def places(self, kernels: Kernels) -> Places:
        """Of all steps."""
        found: Places | None = self.__dict__.get("_places")
        if found is None:
            found = Places(*torch.empty(3, self.steps, dtype=torch.int64, device="cpu").unbind())
            into = (array.data_ptr() for array in found)
            numbers = (ctypes.c_int64 * 8)(*self.addresses[1:], self.count, self.time, *into)
            kernels.library.es_places(ctypes.addressof(numbers))
            self.__dict__["_places"] = found
        return found


@dataclass(frozen=True, eq=False)
class Layout:
    """How the work of a call is divided, and its memory; both depend on sizes alone.

    Attributes:
        kernels: the run-time library.
        code: the compiled loop.
        threads: how many run.
        chunk: steps for which the products ahead are computed at once; 0: not by the loop.
        once: whether these are all steps.
        numbers: the working memory, packed matrices included.
        near: where in it the products ahead of a chunk begin; 0: they have an array.
        packs: of each packed matrix: its slot in the table, and where in the memory it begins.
        entries: the table, with all that is known before a call; after the arrays' addresses comes what `es_run` needs
            to pack each matrix.
    """

    kernels: Kernels
    code: cpu.Code
    threads: int
    chunk: int
    once: bool
    numbers: int
    near: int
    packs: tuple[tuple[int, int], ...]
    entries: Any


@lru_cache(1 << 10)
def layout(
    kernels: Kernels, code: cpu.Code, count: int, steps: int, whole: bool, ahead: bool, near: bool, threads: int
) -> Layout:
    """For a call of `count` rows with so many steps in all.

    Args:
        kernels, code: as in `Layout`.
        count, steps, whole: of `Rows`.
        ahead: whether products ahead are wanted.
        near: whether their results are wanted for a chunk alone.
        threads: how many there are.
    """
    size, each = sum(kernels.packed_size(*shape) for shape in code.matrices), kernels.bytes
    if code.matrices:
        used, by_units = share(threads, count, steps // max(1, count), size * each, kernels.cache)
    else:
        used, by_units = share_loose(threads, count, steps * code.loose)
    # without products, rows have nothing in common: one after the other, their memory is read in order
    own = -(-count // used) if whole else count  # at most
    block = count if by_units else min(64 if code.matrices else 1, own)
    products = code.ahead if ahead else ()
    longest = steps // max(1, count) if whole else steps  # at most
    # with few rows other threads would be idle
    idle = used < threads and steps * sum(a.depth * a.width for a in products) > _ALONE
    chunk = 0 if idle else min(_chunk(products, block, each), max(1, longest))
    if not chunk:
        products = ()
    apart = block * code.row + code.spare
    place = _lines(block * code.row + used * code.spare if by_units else used * apart)
    first_near = place if near and chunk else 0
    near_share = _lines(block * chunk * sum(a.width for a in products)) if first_near else 0
    place += near_share if by_units else near_share * used
    shapes = [*code.matrices, *((a.depth, a.width) for a in products)]
    names = [f"pack{k}" for k in range(len(code.matrices))] + [f"ahead{k}" for k in range(len(products))]
    entries = (ctypes.c_int64 * (len(cpu.HEADER) + len(code.arrays) + _JOB * len(shapes)))()
    packs = []
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        packs.append((code.slots[name], place))
        job = len(cpu.HEADER) + len(code.arrays) + _JOB * number
        entries[job + 1 : job + 3] = list(shape)
        place += _lines(kernels.packed_size(*shape))
    known = {
        "rows": count,
        "split": int(by_units),
        "gemm": kernels.gemm,
        "barrier": kernels.barrier,
        "share": apart,
        "block": block,
        "panel": kernels.panel,
        "chunk": chunk,
        "near_share": 0 if by_units else near_share,
        "far": int(steps * code.loose * each >= _FAR),
    }
    for name, value in known.items():
        entries[cpu.HEADER.index(name)] = value
    grain = 1 << max(0, place.bit_length() - 4)  # forward and backward ask for nearly as much: the same memory serves
    numbers = -(-(place + 16) // grain) * grain
    return Layout(kernels, code, used, chunk, chunk >= longest, numbers, first_near, tuple(packs), entries)


def _chunk(products: Sequence[Ahead], block: int, each: int) -> int:
    """Steps of `block` rows for which products are computed at once, in numbers of `each` bytes; 0: not by the loop."""
    weights = sum(a.depth * a.width for a in products)
    if not weights or weights * each > _LARGE:  # which are read less often by one product of all steps
        return 0
    bytes_a_step = block * each * sum(max(a.depth, a.width) for a in products)
    return max(1, _NEAR // bytes_a_step // _STEPS) * _STEPS


@dataclass(slots=True)
class Table:
    """A call made ready.

    Attributes:
        layout: what was known before.
        entries: what the compiled loop reads.
        memory: working memory with the packed matrices, which lives as long as the table.
    """

    layout: Layout
    entries: Any
    memory: Tensor

    def run(self, loop: int, then: Then = NOTHING, pack: bool = True) -> None:
        """Pack the matrices, unless they are packed already, and run the compiled loop at this address (0: none)."""
        known = self.layout
        jobs = len(known.packs) if pack else 0
        first = len(cpu.HEADER) + len(known.code.arrays)
        known.kernels.run(loop, ctypes.addressof(self.entries), known.threads, 8 * first, jobs, then)


def table(
    known: Layout,
    arrays: Mapping[str, Tensor],
    matrices: Sequence[tuple[Tensor, bool]],
    rows: Rows,
    inside: Mapping[str, int],
    padded: bool = False,
    gate: Any = None,
) -> Table:
    """Write everything down, for the thread that calls.

    Args:
        known: the layout.
        arrays: by name; absent ones are null.
        matrices: each product's, then those of products ahead, and whether they are to be transposed.
        rows: the steps.
        inside: addresses of arrays that lie in others.
        padded: whether the caller's arrays have padding.
        gate: memory of the threads' barrier, for a table that other threads than this one may run.
    """
    memory = empty(next(iter(arrays.values())), known.numbers)
    first, each = -(-memory.data_ptr() // 64) * 64, known.kernels.bytes
    entries = type(known.entries).from_buffer_copy(known.entries)
    entries[_ROWS : _ROWS + 4] = list(rows.addresses)
    entries[_OUTER] = rows.outer.data_ptr() if padded else rows.addresses[1]
    entries[_GATE], entries[_MEMORY] = ctypes.addressof(gate or _own.gate), first
    if known.near:
        entries[_NEAR_AT] = first + known.near * each
    slots = known.code.slots
    for name, array in arrays.items():
        if name in slots:
            entries[slots[name]] = array.data_ptr()
    for name, address in inside.items():
        entries[slots[name]] = address
    job = len(cpu.HEADER) + len(known.code.arrays)
    for (slot, place), (matrix, turned) in zip(known.packs, matrices, strict=False):
        address = first + place * each
        down, right = matrix.stride()
        entries[slot] = entries[job + 5] = address
        entries[job] = matrix.data_ptr()
        entries[job + 3], entries[job + 4] = (right, down) if turned else (down, right)
        job += _JOB
    return Table(known, entries, memory)


class _Own(threading.local):
    """What each thread that calls has for itself: a barrier may be used again when all have passed it."""

    def __init__(self) -> None:
        self.gate = ctypes.create_string_buffer(GATE)


_own = _Own()


def _lines(numbers: int) -> int:
    """Up to whole cache lines."""
    return -(-numbers // 16) * 16


def share(threads: int, rows: int, steps: int, weights: int, cache: int) -> tuple[int, bool]:
    """How many threads, and whether they share the units of all rows (True) or each own rows.

    Rows need no waiting, and nothing goes from one core's cache to another's. But each thread then reads all weights:
    where they do not fit in a core's cache, few rows are little work for that. What is few was measured
    (`benchmarks/engine.py` at 2 threads). `weights` and `cache` are in bytes.
    """
    most = (
        1 if weights <= cache / 2 else 6 if weights <= cache else 4 * threads if weights <= 8 * cache else 32 * threads
    )
    # a core does about 60 multiplications and additions, or reads about 90 bytes, in a nanosecond
    nanoseconds = max(weights / 4 * rows / 60, weights / 90)
    # with less to do between two waits, or before threads that may sleep are called, one does it sooner
    if threads > 1 and rows <= most and nanoseconds > (2000 if steps > 8 else 3000):
        return threads, True
    return min(threads, rows), False


def share_loose(threads: int, rows: int, numbers: int) -> tuple[int, bool]:
    """The same where nothing is multiplied: threads own rows, or, where rows are few, numbers that need no others."""
    if rows < threads and numbers > 1 << 15:
        return threads, True
    return min(threads, rows), False
