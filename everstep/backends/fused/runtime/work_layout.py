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
from everstep.backends.fused.codegen.steps import Ahead
from everstep.native import processor
from everstep.native.call_table import NULL, Entry, brought
from everstep.native.kernels import GATE, Kernels

_NEAR = 1 << 21
"""Bytes of the products ahead that a thread computes at once: they are read again while the cache has them."""
_STEPS = 14
"""Rows for which the products' inner loop is fastest."""
_ALONE = 1 << 22
"""Multiplications ahead that a thread does sooner than others are called."""
_LARGE = 1 << 22
"""Bytes of the matrices for products ahead above which all steps are multiplied at once."""
_FAR = (processor.cache(3) or 1 << 25) // 2
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
        self._turns: dict[tuple[int, bool], Tensor] = {}

    def reset_at(self, resets: Tensor) -> Rows:
        """The same steps with `resets`, which nobody else changes."""
        found = Rows(self.order, self.offset, self.length, self.outer, self.count, self.steps, self.time)
        offset, length, _, outer = self.addresses
        found.resets, found.addresses, found._turns = resets, (offset, length, resets.data_ptr(), outer), self._turns
        return found

    def turns(self, kernels: Kernels, threads: int, dense: bool) -> tuple[int, int]:
        """The addresses of where each thread's rows begin, and of all threads' rows.

        Each has about as much to do. `dense`: what rows are multiplied by has to be read as well.
        """
        found = self._turns.get((threads, dense))
        if found is None:
            found = torch.empty(2 * self.count + threads + 1, dtype=torch.int64, device="cpu")
            order, length = self.order.data_ptr(), self.length.data_ptr()
            numbers = (ctypes.c_int64 * 6)(order, length, self.count, threads, dense, found.data_ptr())
            kernels.library.es_turns(ctypes.addressof(numbers))
            self._turns[threads, dense] = found  # not before it is filled: other threads may ask for the same rows
        start = found.data_ptr()
        return start, start + 8 * (threads + 1)


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """How the work of a call is divided, and its memory; both depend on sizes alone.

    Attributes:
        threads: how many run.
        chunk: steps for which the products ahead are computed at once; 0: not by the loop.
        once: whether these are all steps.
        numbers: the working memory, packed matrices included.
        near: where in it the products ahead of a chunk begin; 0: they have an array.
        dense: whether there are products in the loop.
        split, share, block, near_share, far: of `cpu.HEADER`.
    """

    threads: int
    chunk: int
    once: bool
    numbers: int
    near: int
    dense: bool
    split: int
    share: int
    block: int
    near_share: int
    far: int


@lru_cache(1 << 10)
def layout(
    kernels: Kernels, code: writer.Code, count: int, steps: int, whole: bool, ahead: bool, near: bool, threads: int
) -> Layout:
    """For a call of `count` rows with so many steps in all.

    Args:
        kernels: the run-time library.
        code: the compiled loop.
        count, steps, whole: of `Rows`.
        ahead: whether products ahead are wanted.
        near: whether their results are wanted for a chunk alone.
        threads: how many there are.
    """
    size, each = _packed(kernels, code, False), kernels.bytes
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
    apart = block * code.row + code.spare
    place = _packed(kernels, code, chunk > 0)
    place += _lines(block * code.row + used * code.spare if by_units else used * apart)
    first_near = place if near and chunk else 0
    near_share = _lines(block * chunk * sum(a.width for a in products)) if first_near else 0
    place += near_share if by_units else near_share * used
    grain = 1 << max(0, place.bit_length() - 4)  # forward and backward ask for nearly as much: the same memory serves
    return Layout(
        used,
        chunk,
        chunk >= longest,
        numbers=-(-(place + 16) // grain) * grain,
        near=first_near,
        dense=bool(code.matrices),
        split=int(by_units),
        share=apart,
        block=block,
        near_share=0 if by_units else near_share,
        far=int(steps * code.loose * each >= _FAR),
    )


@lru_cache
def _packed(kernels: Kernels, code: writer.Code, ahead: bool) -> int:
    """Numbers of the packed matrices, with those of products ahead or without."""
    return sum(_lines(kernels.packed_size(*shape)) for shape in _matrices(code, ahead))


def _matrices(code: writer.Code, ahead: bool) -> list[tuple[int, int]]:
    """Rows and columns of the matrices that are packed."""
    return [*code.matrices, *((a.depth, a.width) for a in code.ahead if ahead)]


def _chunk(products: Sequence[Ahead], block: int, each: int) -> int:
    """Steps of `block` rows for which products are computed at once, in numbers of `each` bytes; 0: not by the loop."""
    weights = sum(a.depth * a.width for a in products)
    if not weights or weights * each > _LARGE:  # which are read less often by one product of all steps
        return 0
    bytes_a_step = block * each * sum(max(a.depth, a.width) for a in products)
    return max(1, _NEAR // bytes_a_step // _STEPS) * _STEPS


def table(
    kernels: Kernels,
    code: writer.Code,
    arrays: Mapping[str, Entry],
    matrices: Sequence[tuple[Entry, bool]],
    strides: int,
    ahead: bool,
    padded: bool = False,
) -> tuple[list[int | Entry], int, int]:
    """The table of a compiled loop, and which of its entries are about the first of how many matrices to pack.

    Args:
        kernels, code: as for `layout`.
        arrays: by name; absent ones are null.
        matrices: each product's, then those of products ahead, and whether they are to be transposed.
        strides: among what the call brings, the place of the first of the matrices' strides, two of each.
        ahead: whether the loop computes the products ahead.
        padded: whether the caller's arrays have padding.
    """
    each, place = kernels.bytes, 0
    jobs: list[int | Entry] = []
    names = [f"pack{k}" for k in range(len(code.matrices))] + [f"ahead{k}" for k in range(len(code.ahead))]
    packed: dict[str, Entry] = {}
    for name, shape, (matrix, turned) in zip(names, _matrices(code, ahead), matrices, strict=False):
        packed[name] = brought("memory").behind(place * each)
        by_row, by_column = Entry(strides + turned), Entry(strides + 1 - turned)
        jobs += [matrix, *shape, by_row, by_column, packed[name]]
        place += _lines(kernels.packed_size(*shape))
        strides += 2
    known: dict[str, int | Entry] = {
        "gemm": kernels.gemm,
        "barrier": kernels.barrier,
        "panel": kernels.panel,
        "memory": brought("memory").behind(place * each),
        "outer": brought("outer" if padded else "offset"),
    }
    header = [known[name] if name in known else brought(name) for name in writer.HEADER]
    entries = [*header, *({**arrays, **packed}.get(name, NULL) for name in code.arrays)]
    return [*entries, *jobs], len(entries), len(jobs) // 6


def numbers(
    kernels: Kernels, known: Layout, rows: Rows, memory: int, then_threads: int = 1, room: int = 0, gate: Any = None
) -> tuple[int, ...]:
    """What a call brings, but for its arrays (`form.BRINGS`).

    Args:
        kernels, known, rows: the library, the layout and the steps.
        memory: address of `known.numbers` numbers.
        then_threads, room: on how many threads that runs which comes then, and how many of these numbers each may use.
        gate: memory of the threads' barrier, for what other threads than this one may call.
    """
    starts, order = rows.turns(kernels, 1 if known.split else known.threads, known.dense)
    return (
        rows.steps,
        known.threads,
        then_threads,
        rows.count,
        rows.time,
        starts,
        order,
        *rows.addresses,
        ctypes.addressof(gate or _own.gate),
        memory,
        known.split,
        known.share,
        known.block,
        known.chunk,
        memory + known.near * kernels.bytes if known.near else 0,
        known.near_share,
        known.far,
        room,
    )


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
