"""Products over all steps at once: inputs by weights and their gradients, by the engine's own kernels.

They differ from PyTorch's in speed, and in that a row of `mm` depends neither on other rows nor on the number of
threads, to the last bit. (So small products are not left to PyTorch, which has them done some 10 µs earlier.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from everstep.scanning.fused.pool import empty
from everstep.scanning.fused.table import Rows
from everstep.scanning.fused.threads import NOTHING, Kernels, Then, kernels

_ALONE = 2e6
"""Multiply-adds below which waking threads, which may be asleep, costs more than they save."""


class _Bodies:
    """What a team of threads runs, for one dtype."""

    def __init__(self, dtype: torch.dtype):
        self.kernels = kernels(dtype)
        suffix, library = "f32" if dtype == torch.float32 else "f64", self.kernels.library
        self.rows, self.columns = (
            ctypes.cast(getattr(library, f"es_{name}_{suffix}"), ctypes.c_void_p).value or 0
            for name in ("rows", "columns")
        )
        memory = getattr(library, f"es_gemm_tn_memory_{suffix}")
        memory.restype, memory.argtypes = ctypes.c_int64, [ctypes.c_int64] * 3
        self.memory = lru_cache(1 << 10)(memory)

    def multiply(self, threads: int, table: Sequence[int], matrix: Sequence[int]) -> None:
        """Pack the matrix, and multiply rows by it."""
        numbers = (ctypes.c_int64 * (len(table) + len(matrix)))(*table, *matrix)
        self.kernels.run(self.rows, ctypes.addressof(numbers), threads, 8 * len(table), 1)


_bodies = cache(_Bodies)


@cache
def _short_columns() -> int:
    return ctypes.cast(kernels(torch.float32, True).library.es_columns_short, ctypes.c_void_p).value or 0


def mm(x: Tensor, w: Tensor) -> Tensor:
    """`torch.mm(x, w)`: x (N, K) by w (K, M), of any strides.

    Under autocast, and wherever else the numbers of CPU tensors are not all there is to it, it is PyTorch's.

    Raises:
        BuildError: the kernels cannot be compiled.
    """
    if torch.is_autocast_enabled("cpu") or not _plain(x, w) or x.shape[1] != w.shape[0]:
        return torch.mm(x, w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        product: Tensor = _Product.apply(x, w)
        return product
    return _product(x, w)


@dataclass(slots=True)
class OverSteps:
    """gᵀ·x, summed over all steps: a weight's gradient.

    Attributes:
        g, x: (N, M) and (N, K), of one dtype.
        before: (N,) places and other rows: row p of x instead of row n where p = places[n] ≥ 0, row −1 − p of the
            other rows where p < 0.
    """

    g: Tensor
    x: Tensor
    before: tuple[Tensor, Tensor] | None = None


@dataclass(slots=True)
class OverThreads:
    """A sum of which each thread has a part.

    Attributes:
        parts: (threads, numbers).
        columns: which of the numbers are meant.
    """

    parts: Tensor
    columns: slice


@dataclass(slots=True)
class Padding:
    """Zeros behind the steps of each row of an array (batch, time, …) or (batch · time, …)."""

    array: Tensor
    rows: Rows


@dataclass(slots=True)
class Sums:
    """Sums made ready: `made`, (M, K) of each product, and `summed`, (columns,) of each total, when `then` has run.

    Attributes:
        made, summed: where they will be.
        then: what makes them.
        held: what that reads, and works in.
    """

    made: list[Tensor]
    summed: list[Tensor]
    then: Then = NOTHING
    held: Any = None

    def make(self, library: Kernels) -> Sums:
        """The same, made."""
        library.run(0, 0, 1, 0, 0, self.then)
        return self


def over_steps(
    products: Sequence[OverSteps],
    totals: Sequence[OverThreads] = (),
    paddings: Sequence[Padding] = (),
    *,
    short: bool = False,
    room: Tensor | None = None,
) -> Sums:
    """Make sums ready, and zeros, on the CPU; no gradient goes through them.

    With `short` factors are rounded to bfloat16 (`threads.has_short`), and summed in float32. `room` is memory that no
    one will need when the sums are made: they may be made in it.
    """
    if not (products or totals or paddings):
        return Sums([], [])
    like = products[0].g if products else totals[0].parts if totals else paddings[0].array
    bodies, held = _bodies(like.dtype), []
    made: list[Tensor] = []
    summed: list[Tensor] = []
    table, memory, work = [len(products), len(totals), len(paddings), 0, 0], 0, 0
    for one in products:
        g, x = _lines(one.g), _lines(one.x)
        (steps, rows), columns = g.shape, x.shape[1]
        out = empty(g, rows, columns)
        table += (g.data_ptr(), g.stride(0), x.data_ptr(), x.stride(0), steps, rows, columns, out.data_ptr(), columns)
        if one.before is None:
            table += (0, 0, 0)
        else:
            places, first = one.before[0], _lines(one.before[1])
            table += (places.data_ptr(), first.data_ptr(), first.stride(0))
            held.append(first)
        held += (g, x)
        made.append(out)
        memory = max(memory, bodies.memory(steps, rows, columns))
        work += steps * rows * columns
    for each in totals:
        start, end = each.columns.start, each.columns.stop
        out = empty(like, end - start)
        from_ = each.parts.data_ptr() + start * like.element_size()
        table += (from_, each.parts.shape[0], each.parts.stride(0), end - start, out.data_ptr())
        summed.append(out)
    for padding in paddings:
        array, of = padding.array, padding.rows
        table += (array.data_ptr(), of.addresses[2], of.count, of.time, array.nbytes // (of.count * of.time))
        work += array.nbytes
    threads = _threads(work)
    if room is None or room.numel() < threads * memory:
        room = empty(like, threads * memory)
    table[3:5] = room.data_ptr(), memory
    numbers = (ctypes.c_int64 * len(table))(*table)
    then = (_short_columns() if short else bodies.columns, ctypes.addressof(numbers), threads)
    return Sums(made, summed, then, (numbers, room, held))


def transposed(g: Tensor, x: Tensor) -> Tensor:
    """gᵀ·x of g (N, M) and x (N, K); no gradient goes through it."""
    return over_steps([OverSteps(g, x)]).make(kernels(g.dtype)).made[0]


def product(x: Tensor, w: Tensor, out: Tensor | None = None, *, short: bool = False) -> Tensor:
    """x (N, K) by w (K, M), on the CPU; no gradient goes through it. With `short` as in `transposed`."""
    if out is None:
        out = empty(x, x.shape[0], w.shape[1])
    if short:
        return out.copy_(torch.mm(x.bfloat16(), w.bfloat16()))
    return _product(x, w, out)


def _product(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    (steps, depth), columns = x.shape, w.shape[1]
    x = _lines(x)
    bodies = _bodies(x.dtype)
    if out is None:
        out = empty(x, steps, columns)
    line = 64 // x.element_size()
    memory = empty(x, bodies.kernels.packed_size(depth, columns) + line)
    packed = (memory.data_ptr() + 63) // 64 * 64
    table = [x.data_ptr(), x.stride(0), steps, packed, depth, columns, out.data_ptr(), columns]
    matrix = [w.data_ptr(), depth, columns, *w.stride(), packed]
    bodies.multiply(_threads(steps * depth * columns), table, matrix)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.set_materialize_grads(False)
        return _product(x, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        want_x, want_w = ctx.needs_input_grad
        if grad is None:
            return None, None
        if torch.is_grad_enabled() or not _plain(grad, x, w):
            return grad @ w.t() if want_x else None, x.t() @ grad if want_w else None
        d_w = None
        if want_w:  # in the layout of w: a parameter's gradient is to be contiguous as the parameter is
            d_w = transposed(x, grad) if w.is_contiguous() else transposed(grad, x).t()
        return _product(grad, w.t()) if want_x else None, d_w


def _plain(*tensors: Tensor) -> bool:
    """Whether these are numbers in memory and no one watches what PyTorch does with them."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.float64)
        and all(t.dtype == dtype and t.dim() == 2 for t in tensors)
        and all(t.device.type == "cpu" and t.layout == torch.strided and not t.is_neg() for t in tensors)
        and all(type(t) in (Tensor, torch.nn.Parameter) and torch._C._has_storage(t) for t in tensors)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.compiler.is_compiling()
    )


def _lines(matrix: Tensor) -> Tensor:
    """The matrix, its rows contiguous."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _threads(work: int) -> int:
    return 1 if work < _ALONE else max(1, min(torch.get_num_threads(), 64))
