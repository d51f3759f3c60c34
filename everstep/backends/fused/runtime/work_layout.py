"""The argument of the compiled loops, a table of sizes and pointers: division of work, and memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from everstep.backends.fused.codegen import writer
from everstep.backends.fused.codegen.steps import InputProjection
from everstep.native import processor
from everstep.native.c_tables import NULL, Assignment, Entry, Packing, Slot, argument, int64_array
from everstep.native.kernels import GATE, Kernels

_NEAR = 1 << 21
"""Bytes of input projections that a thread computes at once, so that they are still cached when read."""
_STEPS = 14
"""Number of rows for which the inner loop of products is fastest."""
_ALONE = 1 << 22
"""Multiplications of input projections below which one thread is faster than several."""
_LARGE = 1 << 22
"""Bytes of the matrices of input projections above which all steps are multiplied at once."""
_NONTEMPORAL = (processor.cache(3) or 1 << 25) // 2
"""Bytes of outputs of elementwise loops from which they bypass the caches, where they would only evict other data."""


class Rows:
    """The valid steps: row i has `length[i]` steps, beginning at index `offset[i]`.

    Args, and attributes:
        order, offset, length: (batch,) int64; `order` sorts the lengths, longest first.
        outer: (batch,) int64: the start of each row in the caller's arrays.
        count: number of rows.
        steps: total number of valid steps.
        time: steps of a row in the caller's arrays, with padding.

    Attributes:
        resets: (steps,) bool, or None.
        whole: whether no row has padding.
        addresses: of `offset`, `length`, `resets` and `outer`.
    """

    def __init__(
        self, order: Tensor, offset: Tensor, length: Tensor, outer: Tensor, count: int, steps: int, time: int
    ) -> None:
        self.order, self.offset, self.length, self.outer = order, offset, length, outer
        self.count, self.steps, self.time, self.whole = count, steps, time, steps == count * time
        self.resets: Tensor | None = None
        self.addresses = offset.data_ptr(), length.data_ptr(), 0, outer.data_ptr()
        self._assignments: dict[tuple[int, bool], Tensor] = {}

    def reset_at(self, resets: Tensor) -> Rows:
        """The same steps with `resets`, which must not be changed afterwards."""
        found = Rows(self.order, self.offset, self.length, self.outer, self.count, self.steps, self.time)
        offset, length, _, outer = self.addresses
        found.resets, found._assignments = resets, self._assignments
        found.addresses = offset, length, resets.data_ptr(), outer
        return found

    def assignment(self, kernels: Kernels, threads: int, dense: bool) -> tuple[int, int]:
        """Assign rows to threads by work: the addresses of the start of each thread's rows, and of all rows.

        `dense`: whether the cost of reading the matrices counts too.
        """
        found = self._assignments.get((threads, dense))
        if found is None:
            found = torch.empty(2 * self.count + threads + 1, dtype=torch.int64, device="cpu")
            order, length = self.order.data_ptr(), self.length.data_ptr()
            table = Assignment(order, length, self.count, threads, dense, found.data_ptr())
            numbers = int64_array(table)
            kernels.library.es_assign(ctypes.addressof(numbers))
            # stored only when filled, since other threads may read it
            self._assignments[threads, dense] = found
        start = found.data_ptr()
        return start, start + 8 * (threads + 1)


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """The division of work and the memory of a call, which depend on sizes alone.

    Attributes:
        threads: number of threads.
        chunk: steps for which input projections are computed at once; 0 if the loop does not compute them.
        once: whether a chunk covers all steps.
        numbers: size of the working memory, including packed matrices.
        near: offset of the input projections of a chunk in it; 0 if they have an array.
        dense: whether the loop has products.
        split, thread_stride, block, near_stride, nontemporal: see `Arguments`.
    """

    threads: int
    chunk: int
    once: bool
    numbers: int
    near: int
    dense: bool
    split: int
    thread_stride: int
    block: int
    near_stride: int
    nontemporal: int


@lru_cache(1 << 10)
def layout(
    kernels: Kernels,
    code: writer.Code,
    count: int,
    steps: int,
    whole: bool,
    projections: bool,
    near: bool,
    threads: int,
) -> Layout:
    """The layout of a call of `count` rows with `steps` steps in total.

    Args:
        kernels, code: the run-time library, and the compiled loop.
        count, steps, whole: see `Rows`.
        projections: whether the loop computes input projections.
        near: whether their results are needed for one chunk only.
        threads: number of available ones.
    """
    size, each = _packed(kernels, code, False), kernels.bytes
    if code.matrices:
        used, by_units = partition(threads, count, steps // max(1, count), size * each, kernels.cache)
    else:
        used, by_units = partition_elementwise(threads, count, steps * code.elementwise_width)
    # without products, rows share nothing and run one after another, so that memory is read in order
    own = -(-count // used) if whole else count  # at most
    block = count if by_units else min(64 if code.matrices else 1, own)
    products = code.projections if projections else ()
    longest = steps // max(1, count) if whole else steps  # at most
    # with few rows, other threads would be idle
    idle = used < threads and steps * sum(a.depth * a.width for a in products) > _ALONE
    chunk = 0 if idle else min(_chunk(products, block, each), max(1, longest))
    apart = block * code.row + code.spare
    place = _packed(kernels, code, chunk > 0)
    place += _lines(block * code.row + used * code.spare if by_units else used * apart)
    first_near = place if near and chunk else 0
    near_stride = _lines(block * chunk * sum(a.width for a in products)) if first_near else 0
    place += near_stride if by_units else near_stride * used
    grain = 1 << max(0, place.bit_length() - 4)  # forward and backward, nearly equal, share memory
    return Layout(
        used,
        chunk,
        chunk >= longest,
        numbers=-(-(place + 16) // grain) * grain,
        near=first_near,
        dense=bool(code.matrices),
        split=int(by_units),
        thread_stride=apart,
        block=block,
        near_stride=0 if by_units else near_stride,
        nontemporal=int(steps * code.elementwise_width * each >= _NONTEMPORAL),
    )


@lru_cache
def _packed(kernels: Kernels, code: writer.Code, projections: bool) -> int:
    """The size of the packed matrices, with or without those of input projections."""
    return sum(_lines(kernels.packed_size(*shape)) for shape in _matrices(code, projections))


def _matrices(code: writer.Code, projections: bool) -> list[tuple[int, int]]:
    """The rows and columns of the packed matrices."""
    return [*code.matrices, *((a.depth, a.width) for a in code.projections if projections)]


def _chunk(products: Sequence[InputProjection], block: int, each: int) -> int:
    """The steps of `block` rows for which products are computed at once, with `each` bytes a number; 0 for none."""
    weights = sum(a.depth * a.width for a in products)
    if not weights or weights * each > _LARGE:  # one product over all steps reads the matrices less often
        return 0
    bytes_a_step = block * each * sum(max(a.depth, a.width) for a in products)
    return max(1, _NEAR // bytes_a_step // _STEPS) * _STEPS


def table(
    kernels: Kernels,
    code: writer.Code,
    arrays: Mapping[str, Slot],
    matrices: Sequence[tuple[Slot, bool]],
    strides: int,
    projections: bool,
    padded: bool = False,
) -> tuple[list[Entry], int, int]:
    """The table of a compiled loop, the index of its first entry on matrices to pack, and their number.

    Args:
        kernels, code: see `layout`.
        arrays: slots by name; absent arrays are null.
        matrices: those of the products, then those of input projections, and whether to transpose them.
        strides: index of the first of the matrices' strides among the numbers of a call, two per matrix.
        projections: whether the loop computes the input projections.
        padded: whether the caller's arrays have padding.
    """
    each, place = kernels.bytes, 0
    jobs: list[Packing] = []
    names = [f"pack{k}" for k in range(len(code.matrices))] + [f"projection{k}" for k in range(len(code.projections))]
    packed: dict[str, Slot] = {}
    for name, shape, (matrix, transposed) in zip(names, _matrices(code, projections), matrices, strict=False):
        packed[name] = argument("memory").behind(place * each)
        by_row, by_column = Slot(strides + transposed), Slot(strides + 1 - transposed)
        jobs.append(Packing(matrix, *shape, by_row, by_column, packed[name]))
        place += _lines(kernels.packed_size(*shape))
        strides += 2
    known: dict[str, Entry] = {
        "gemm": kernels.gemm,
        "barrier": kernels.barrier,
        "panel": kernels.panel,
        "memory": argument("memory").behind(place * each),
        "outer": argument("outer" if padded else "offset"),
    }
    header = [known[name] if name in known else argument(name) for name in writer.HEADER]
    entries = [*header, *({**arrays, **packed}.get(name, NULL) for name in code.arrays)]
    return [*entries, *(entry for job in jobs for entry in job)], len(entries), len(jobs)


def numbers(
    kernels: Kernels, work: Layout, rows: Rows, memory: int, then_threads: int = 1, workspace: int = 0, gate: Any = None
) -> tuple[int, ...]:
    """The numbers of a call, without its arrays: `Arguments`, as a plain tuple, which takes a microsecond less.

    Args:
        kernels, work, rows: the library, the layout and the steps.
        memory: address of `work.numbers` numbers.
        then_threads, workspace: threads of the function after the loop, and the part of these numbers for each.
        gate: memory of the threads' barrier, for calls from other threads than this one.
    """
    starts, order = rows.assignment(kernels, 1 if work.split else work.threads, work.dense)
    return (
        rows.steps,
        work.threads,
        then_threads,
        rows.count,
        rows.time,
        starts,
        order,
        *rows.addresses,
        ctypes.addressof(gate or _own.gate),
        memory,
        work.split,
        work.thread_stride,
        work.block,
        work.chunk,
        memory + work.near * kernels.bytes if work.near else 0,
        work.near_stride,
        work.nontemporal,
        workspace,
        0,
    )


class _Own(threading.local):
    """Thread-local data of a calling thread: a barrier, which may be reused when all threads have passed it."""

    def __init__(self) -> None:
        self.gate = ctypes.create_string_buffer(GATE)


_own = _Own()


def _lines(numbers: int) -> int:
    """A size rounded up to whole cache lines."""
    return -(-numbers // 16) * 16


def partition(threads: int, rows: int, steps: int, weights: int, cache: int) -> tuple[int, bool]:
    """The number of threads, and whether they share the units of all rows (True) or own rows (False).

    Threads that own rows need no synchronisation and exchange no cache lines, but each reads all weights. If the
    weights exceed a core's cache, few rows are too little work for that. The threshold was measured
    (`benchmarks/engine.py` at 2 threads). `weights` and `cache` are in bytes.
    """
    most = (
        1 if weights <= cache / 2 else 6 if weights <= cache else 4 * threads if weights <= 8 * cache else 32 * threads
    )
    # a core does about 60 multiply-adds, or reads about 90 bytes, per nanosecond
    nanoseconds = max(weights / 4 * rows / 60, weights / 90)
    # with less work between two barriers, or before sleeping threads wake, one thread is faster
    if threads > 1 and rows <= most and nanoseconds > (2000 if steps > 8 else 3000):
        return threads, True
    return min(threads, rows), False


def partition_elementwise(threads: int, rows: int, numbers: int) -> tuple[int, bool]:
    """As `partition`, without products: threads own rows, or with few rows share the independent elements."""
    if rows < threads and numbers > 1 << 15:
        return threads, True
    return min(threads, rows), False
