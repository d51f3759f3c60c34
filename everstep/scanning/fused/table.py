"""The one argument of the compiled loops: a table of sizes and pointers, with the memory that it points to."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from everstep.scanning.fused import cpu
from everstep.scanning.fused.pool import empty
from everstep.scanning.fused.threads import Kernels

_NEAR = 1 << 21
"""Bytes of the products ahead that a thread computes at once: they are read again while the cache has them."""
_STEPS = 14
"""Rows for which the products' inner loop is fastest."""
_ALONE = 1 << 22
"""Multiplications ahead that a thread does sooner than others are called."""
_LARGE = 1 << 22
"""Bytes of the matrices for products ahead above which all steps are multiplied at once."""


@dataclass(frozen=True)
class Rows:
    """Which steps there are: row i has `length[i]` steps from place `offset[i]` on, and takes its turn by `order`.

    Attributes:
        order, offset, length: (batch,) int64; `order` sorts the lengths, longest first.
        resets: (steps,) uint8, or None.
        count: rows.
        steps: in all.
        whole: whether all rows have as many.
    """

    order: Tensor
    offset: Tensor
    length: Tensor
    resets: Tensor | None
    count: int
    steps: int
    whole: bool

    @cached_property
    def starts(self) -> tuple[Tensor, Tensor]:
        """Rows that have steps, and the places of their first."""
        rows = self.length.nonzero()[:, 0]
        return rows, self.offset[rows]

    @cached_property
    def restarts(self) -> tuple[Tensor, Tensor]:
        """Rows and places of all resets."""
        assert self.resets is not None
        places = self.resets.nonzero()[:, 0]
        rows, first = self.starts
        return rows[torch.searchsorted(first, places, right=True) - 1], places

    @cached_property
    def before(self) -> Tensor:
        """(steps,) int64: the place of the step before; −1 − i where row i starts, −1 − count − i at its resets."""
        places = torch.arange(-1, self.steps - 1, device="cpu")
        rows, first = self.starts
        places[first] = -1 - rows
        if self.resets is not None:
            rows, first = self.restarts
            places[first] = -1 - self.count - rows
        return places


@dataclass(frozen=True)
class Table:
    """A call made ready.

    Attributes:
        entries: what the compiled loop reads.
        memory: working memory with the packed matrices, and the threads' barrier: they live as long as the table.
        threads: how many are to run.
        kernels: the run-time library.
    """

    entries: Any
    memory: tuple[Tensor, Any]
    threads: int
    kernels: Kernels

    def run(self, loop: Any) -> None:
        """Run a compiled loop on it."""
        self.kernels.parallel(loop, self.entries, self.threads)


@dataclass(frozen=True)
class Team:
    """How the work of a call is divided.

    Attributes:
        threads: how many run.
        by_units: whether they share the units of all rows, or each own rows.
        block: rows that go side by side on a thread.
        chunk: steps for which the products ahead are computed at once; 0: not by the loop.
    """

    threads: int
    by_units: bool
    block: int
    chunk: int


def team(
    kernels: Kernels, code: cpu.Code, matrices: Sequence[Tensor], ahead: Sequence[Tensor], rows: Rows, each: int
) -> Team:
    """Threads and blocks for a call whose loop multiplies by `matrices` in a step, and by `ahead` for many.

    Numbers are of `each` bytes.
    """
    size = sum(kernels.packed_size(*matrix.shape) for matrix in matrices)
    if matrices:
        threads, by_units = share(kernels, rows.count, size, each)
    else:
        threads, by_units = share_loose(rows, code.loose)
    # without products, rows have nothing in common: one after the other, their memory is read in order
    own = -(-rows.count // threads) if rows.whole else rows.count  # at most
    block = rows.count if by_units else min(64 if matrices else 1, own)
    weights = sum(matrix.numel() for matrix in ahead)
    # large matrices are read less often by a product of all steps; and with few rows other threads would be idle
    idle = threads < torch.get_num_threads() and rows.steps * weights > _ALONE
    if not ahead or weights * each > _LARGE or idle:
        return Team(threads, by_units, block, 0)
    bytes_a_step = max(1, block * each * sum(max(matrix.shape) for matrix in ahead))
    longest = rows.steps // max(1, rows.count) if rows.whole else rows.steps  # at most
    chunk = max(1, _NEAR // bytes_a_step // _STEPS) * _STEPS
    return Team(threads, by_units, block, min(chunk, max(1, longest)))


def table(
    kernels: Kernels,
    code: cpu.Code,
    arrays: Mapping[str, Tensor],
    matrices: Sequence[Tensor],
    ahead: Sequence[Tensor],
    rows: Rows,
    work: Team,
    inside: Mapping[str, int],
) -> Table:
    """Pack the matrices, and write everything down.

    `inside`: addresses of arrays that lie in others. Absent ones are null; what the products ahead fill without there
    being an array for it is kept for a chunk alone.
    """
    like = next(iter(arrays.values()))
    each = like.element_size()
    if not work.chunk:
        ahead = []
    sizes = [_lines(kernels.packed_size(*matrix.shape)) for matrix in (*matrices, *ahead)]
    apart = work.block * code.row + code.spare
    own = work.block * code.row + work.threads * code.spare if work.by_units else work.threads * apart
    own = _lines(own)
    near = code.near > 0 and work.chunk > 0 and not any(name in arrays for name in code.ahead)
    near_share = _lines(work.block * work.chunk * code.near) if near else 0
    near_all = near_share if work.by_units else near_share * work.threads
    memory = empty(like, own + near_all + sum(sizes) + 16)
    first = -(-memory.data_ptr() // 64) * 64
    gate = ctypes.create_string_buffer(kernels.barrier_bytes + 64)
    header = (
        rows.count,
        int(work.by_units),
        rows.order.data_ptr(),
        rows.offset.data_ptr(),
        rows.length.data_ptr(),
        0 if rows.resets is None else rows.resets.data_ptr(),
        kernels.gemm,
        kernels.barrier,
        (ctypes.addressof(gate) + 63) // 64 * 64,
        first,
        apart,
        work.block,
        kernels.panel,
        work.chunk,
        first + own * each if near else 0,
        0 if work.by_units else near_share,
    )
    entries = (ctypes.c_int64 * (len(cpu.HEADER) + len(code.arrays)))(*header)
    slots = code.slots
    for name, array in arrays.items():
        if name in slots:
            entries[slots[name]] = array.data_ptr()
    for name, address in inside.items():
        entries[slots[name]] = address
    place = first + (own + near_all) * each
    names = [f"pack{k}" for k in range(len(matrices))] + [f"ahead{k}" for k in range(len(ahead))]
    for name, matrix, size in zip(names, (*matrices, *ahead), sizes, strict=True):
        kernels.pack(matrix, place)
        entries[slots[name]] = place
        place += size * each
    return Table(entries, (memory, gate), work.threads, kernels)


def _lines(numbers: int) -> int:
    """Up to whole cache lines."""
    return -(-numbers // 16) * 16


def share(kernels: Kernels, rows: int, weights: int, each: int) -> tuple[int, bool]:
    """How many threads, and whether they share the units of all rows (True) or each own rows.

    Rows need no waiting, and nothing goes from one core's cache to another's. But few rows make each thread read all
    weights for little work: that is worth sharing where they do not fit in a core's cache, or for one row, if there
    is enough to do between two waits (`benchmarks/engine.py` at 2 threads).
    """
    threads = max(1, torch.get_num_threads())
    if rows >= 4 * threads or (rows > 1 and weights * each <= kernels.cache):
        return min(threads, rows), False
    # a core does about 60 multiplications and additions, or reads about 90 bytes, in a nanosecond
    nanoseconds = max(weights * rows / 60, weights * each / 90)
    if threads > 1 and nanoseconds > 3000:
        return threads, True
    return min(threads, rows), False


def share_loose(rows: Rows, loose: int) -> tuple[int, bool]:
    """The same where nothing is multiplied: threads own rows, or, where rows are few, numbers that need no others."""
    threads = max(1, torch.get_num_threads())
    if rows.count < threads and rows.steps * loose > 1 << 15:
        return threads, True
    return min(threads, rows.count), False
