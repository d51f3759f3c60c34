"""The one argument of the compiled loops, a table of sizes and pointers: how the work is divided, and its memory."""

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
from everstep.native.call_table import NULL, Slot, argument
from everstep.native.kernels import GATE, Kernels

_NEAR = 1 << 21
"""Bytes of the input projections that a thread computes at once: they are read again while the cache has them."""
_STEPS = 14
"""Rows for which the products' inner loop is fastest."""
_ALONE = 1 << 22
"""Multiplications of input projections that a thread does sooner than others are called."""
_LARGE = 1 << 22
"""Bytes of the matrices for input projections above which all steps are multiplied at once."""
_NONTEMPORAL = (processor.cache(3) or 1 << 25) // 2
"""Bytes of outputs that nothing is multiplied for, from which on they would only drive others out of the caches."""


class Rows:
    """Which steps there are: row i has `length[i]` steps from place `offset[i]` on.

    Args, and attributes:
        order, offset, length: (batch,) int64; `order` sorts the lengths, longest first.
        outer: (batch,) int64: where rows begin in the caller's arrays.
        count: rows.
        steps: in all.
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
        """The same steps with `resets`, which nobody else changes."""
        found = Rows(self.order, self.offset, self.length, self.outer, self.count, self.steps, self.time)
        offset, length, _, outer = self.addresses
        found.resets, found._assignments = resets, self._assignments
        found.addresses = offset, length, resets.data_ptr(), outer
        return found

    def assignment(self, kernels: Kernels, threads: int, dense: bool) -> tuple[int, int]:
        """The addresses of where each thread's rows begin, and of all threads' rows.

        Each has about as much to do. `dense`: what rows are multiplied by has to be read as well.
        """
        found = self._assignments.get((threads, dense))
        if found is None:
            found = torch.empty(2 * self.count + threads + 1, dtype=torch.int64, device="cpu")
            order, length = self.order.data_ptr(), self.length.data_ptr()
            numbers = (ctypes.c_int64 * 6)(order, length, self.count, threads, dense, found.data_ptr())
            kernels.library.es_assign(ctypes.addressof(numbers))
            # not before it is filled: other threads may ask for the same rows
            self._assignments[threads, dense] = found
        start = found.data_ptr()
        return start, start + 8 * (threads + 1)


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """How the work of a call is divided, and its memory; both depend on sizes alone.

    Attributes:
        threads: how many run.
        chunk: steps for which the input projections are computed at once; 0: not by the loop.
        once: whether these are all steps.
        numbers: the working memory, packed matrices included.
        near: where in it the input projections of a chunk begin; 0: they have an array.
        dense: whether there are products in the loop.
        split, thread_stride, block, near_stride, nontemporal: of `writer.HEADER`.
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
    """For a call of `count` rows with so many steps in all.

    Args:
        kernels: the run-time library.
        code: the compiled loop.
        count, steps, whole: of `Rows`.
        projections: whether input projections are wanted.
        near: whether their results are wanted for a chunk alone.
        threads: how many there are.
    """
    size, each = _packed(kernels, code, False), kernels.bytes
    if code.matrices:
        used, by_units = partition(threads, count, steps // max(1, count), size * each, kernels.cache)
    else:
        used, by_units = partition_elementwise(threads, count, steps * code.elementwise_width)
    # without products, rows have nothing in common: one after the other, their memory is read in order
    own = -(-count // used) if whole else count  # at most
    block = count if by_units else min(64 if code.matrices else 1, own)
    products = code.projections if projections else ()
    longest = steps // max(1, count) if whole else steps  # at most
    # with few rows other threads would be idle
    idle = used < threads and steps * sum(a.depth * a.width for a in products) > _ALONE
    chunk = 0 if idle else min(_chunk(products, block, each), max(1, longest))
    apart = block * code.row + code.spare
    place = _packed(kernels, code, chunk > 0)
    place += _lines(block * code.row + used * code.spare if by_units else used * apart)
    first_near = place if near and chunk else 0
    near_stride = _lines(block * chunk * sum(a.width for a in products)) if first_near else 0
    place += near_stride if by_units else near_stride * used
    grain = 1 << max(0, place.bit_length() - 4)  # forward and backward ask for nearly as much: the same memory serves
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
    """Numbers of the packed matrices, with those of input projections or without."""
    return sum(_lines(kernels.packed_size(*shape)) for shape in _matrices(code, projections))


def _matrices(code: writer.Code, projections: bool) -> list[tuple[int, int]]:
    """Rows and columns of the matrices that are packed."""
    return [*code.matrices, *((a.depth, a.width) for a in code.projections if projections)]


def _chunk(products: Sequence[InputProjection], block: int, each: int) -> int:
    """Steps of `block` rows for which products are computed at once, in numbers of `each` bytes; 0: not by the loop."""
    weights = sum(a.depth * a.width for a in products)
    if not weights or weights * each > _LARGE:  # which are read less often by one product of all steps
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
) -> tuple[list[int | Slot], int, int]:
    """The table of a compiled loop, and which of its entries are about the first of how many matrices to pack.

    Args:
        kernels, code: as for `layout`.
        arrays: by name; absent ones are null.
        matrices: each product's, then those of input projections, and whether they are to be transposed.
        strides: among what the call brings, the place of the first of the matrices' strides, two of each.
        projections: whether the loop computes the input projections.
        padded: whether the caller's arrays have padding.
    """
    each, place = kernels.bytes, 0
    jobs: list[int | Slot] = []
    names = [f"pack{k}" for k in range(len(code.matrices))] + [f"projection{k}" for k in range(len(code.projections))]
    packed: dict[str, Slot] = {}
    for name, shape, (matrix, transposed) in zip(names, _matrices(code, projections), matrices, strict=False):
        packed[name] = argument("memory").behind(place * each)
        by_row, by_column = Slot(strides + transposed), Slot(strides + 1 - transposed)
        jobs += [matrix, *shape, by_row, by_column, packed[name]]
        place += _lines(kernels.packed_size(*shape))
        strides += 2
    known: dict[str, int | Slot] = {
        "gemm": kernels.gemm,
        "barrier": kernels.barrier,
        "panel": kernels.panel,
        "memory": argument("memory").behind(place * each),
        "outer": argument("outer" if padded else "offset"),
    }
    header = [known[name] if name in known else argument(name) for name in writer.HEADER]
    entries = [*header, *({**arrays, **packed}.get(name, NULL) for name in code.arrays)]
    return [*entries, *jobs], len(entries), len(jobs) // 6


def numbers(
    kernels: Kernels, work: Layout, rows: Rows, memory: int, then_threads: int = 1, workspace: int = 0, gate: Any = None
) -> tuple[int, ...]:
    """What a call brings, but for its arrays (`call_table.ARGUMENTS`).

    Args:
        kernels, work, rows: the library, the layout and the steps.
        memory: address of `work.numbers` numbers.
        then_threads, workspace: the threads of what comes then, and how many of these numbers each of them may use.
        gate: memory of the threads' barrier, for what other threads than this one may call.
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
    )


class _Own(threading.local):
    """What each thread that calls has for itself: a barrier may be used again when all have passed it."""

    def __init__(self) -> None:
        self.gate = ctypes.create_string_buffer(GATE)


_own = _Own()


def _lines(numbers: int) -> int:
    """Up to whole cache lines."""
    return -(-numbers // 16) * 16


def partition(threads: int, rows: int, steps: int, weights: int, cache: int) -> tuple[int, bool]:
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


def partition_elementwise(threads: int, rows: int, numbers: int) -> tuple[int, bool]:
    """The same where nothing is multiplied: threads own rows, or, where rows are few, numbers that need no others."""
    if rows < threads and numbers > 1 << 15:
        return threads, True
    return min(threads, rows), False
