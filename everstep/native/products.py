"""Products over all steps at once: inputs by weights and their gradients, by the engine's own kernels.

They differ from PyTorch's in speed, and in that a row of `mm` depends neither on other rows nor on the number of
threads, to the last bit. (So small products are not left to PyTorch, which has them done some 10 µs earlier.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.native.call_table import NULL, Slot, argument
from everstep.native.kernels import kernels
from everstep.native.memory_pool import empty, scratch
from everstep.native.plain_memory import plain, watched

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
def _bf16_columns() -> int:
    return ctypes.cast(kernels(torch.float32, True).library.es_columns_bf16, ctypes.c_void_p).value or 0


def mm(x: Tensor, w: Tensor) -> Tensor:
    """`torch.mm(x, w)`: x (N, K) by w (K, M), of any strides.

    Under autocast, and wherever else the numbers of CPU tensors are not all there is to it, it is PyTorch's.

    Raises:
        BuildError: the kernels cannot be compiled.
    """
    if torch.is_autocast_enabled("cpu") or not _takes(x, w) or x.shape[1] != w.shape[0]:
        return torch.mm(x, w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        product: Tensor = _Product.apply(x, w)
        return product
    return _product(x, w)


ALL, USED, BEFORE, USED_BEFORE = range(4)
"""Rows of a matrix that belong to steps: that of the same number; that of the step's place in the caller's arrays; that
of the step before it, in either order."""


class OverSteps(NamedTuple):
    """gᵀ·x, summed over all steps (a weight's gradient): what C reads of it.

    Attributes:
        g, by_g, x, by_x: (steps, rows) and (steps, columns), and the distance of their rows.
        steps, rows, columns: their sizes.
        out, by_out: (rows, columns), where the sum goes, and the distance of its rows.
        way: which row of x belongs to a step: `ALL`, `USED`, `BEFORE`, `USED_BEFORE`.
        others, by_others: other rows of x, and their distance: what is before the first step of rows, then what is
            before their resets.
    """

    g: Slot
    by_g: int
    x: Slot
    by_x: int
    steps: Slot
    rows: int
    columns: int
    out: Slot
    by_out: int
    way: int = ALL
    others: Slot = NULL
    by_others: int = 0


class OverThreads(NamedTuple):
    """A sum of which each thread has a part: what C reads of it.

    Attributes:
        parts, threads, by: (threads, numbers), how many there are, and their distance.
        size: how many numbers are meant.
        out: (size,), where the sum goes.
    """

    parts: Slot
    threads: Slot
    by: int
    size: int
    out: Slot


class Padding(NamedTuple):
    """Zeros behind the steps of each row of an array (rows, time, …): what C reads of it.

    Attributes:
        array, each: the array, and bytes of a step.
    """

    array: Slot
    each: int


def over_steps(
    products: Sequence[OverSteps], totals: Sequence[OverThreads] = (), paddings: Sequence[Padding] = ()
) -> list[int | Slot]:
    """The table of `columns`, which makes sums over steps, and zeros, in the memory that a call brings."""
    table: list[int | Slot] = [len(products), len(totals), len(paddings)]
    table += map(argument, ("memory", "workspace", "offset", "length", "resets", "rows", "time"))
    for one in (*products, *totals, *paddings):
        table += one
    return table


def columns(dtype: torch.dtype, bf16: bool = False) -> int:
    """The address of what makes them. With `bf16` factors are rounded to bfloat16 (`kernels.has_bf16`), and summed in
    float32."""
    return _bf16_columns() if bf16 else _bodies(dtype).columns


def workspace_over_steps(dtype: torch.dtype, steps: int, rows: int, columns: int) -> int:
    """Numbers that a thread needs for one product."""
    return int(_bodies(dtype).memory(steps, rows, columns))


def transposed(g: Tensor, x: Tensor, *, bf16: bool = False) -> Tensor:
    """gᵀ·x of g (N, M) and x (N, K), on the CPU; no gradient goes through it. `bf16` as of `columns`."""
    g, x = _lines(g), _lines(x)
    (steps, rows), width = g.shape, x.shape[1]
    out, threads = empty(g, rows, width), threads_for(steps * rows * width, torch.get_num_threads())
    workspace = workspace_over_steps(g.dtype, steps, rows, width)
    memory = scratch(g, threads * workspace)
    table = [1, 0, 0, memory.data_ptr(), workspace, *[0] * 5]
    table += [g.data_ptr(), g.stride(0), x.data_ptr(), x.stride(0), steps, rows, width, out.data_ptr(), width]
    table += [ALL, 0, 0]
    numbers = (ctypes.c_int64 * len(table))(*table)
    kernels(g.dtype).run(columns(g.dtype, bf16), ctypes.addressof(numbers), threads)
    return out


def product(x: Tensor, w: Tensor, out: Tensor | None = None, *, bf16: bool = False) -> Tensor:
    """x (N, K) by w (K, M), on the CPU; no gradient goes through it. With `bf16` as in `transposed`."""
    if out is None:
        out = empty(x, x.shape[0], w.shape[1])
    if bf16:
        return out.copy_(torch.mm(x.bfloat16(), w.bfloat16()))
    return _product(x, w, out)


def _product(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    (steps, depth), columns = x.shape, w.shape[1]
    x = _lines(x)
    bodies = _bodies(x.dtype)
    if out is None:
        out = empty(x, steps, columns)
    line = 64 // x.element_size()
    memory = scratch(x, bodies.kernels.packed_size(depth, columns) + line)
    packed = (memory.data_ptr() + 63) // 64 * 64
    table = [x.data_ptr(), x.stride(0), steps, packed, depth, columns, out.data_ptr(), columns]
    matrix = [w.data_ptr(), depth, columns, *w.stride(), packed]
    bodies.multiply(threads_for(steps * depth * columns, torch.get_num_threads()), table, matrix)
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
        if torch.is_grad_enabled() or not _takes(grad, x, w):
            return grad @ w.t() if want_x else None, x.t() @ grad if want_w else None
        d_w = None
        if want_w:  # in the layout of w: a parameter's gradient is to be contiguous as the parameter is
            d_w = transposed(x, grad) if w.is_contiguous() else transposed(grad, x).t()
        return _product(grad, w.t()) if want_x else None, d_w


def _takes(*tensors: Tensor) -> bool:
    """Whether the kernels can multiply these."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.float64)
        and all(t.dtype == dtype and t.dim() == 2 and t.is_cpu for t in tensors)
        and plain(*tensors)
        and watched() is None
    )


def _lines(matrix: Tensor) -> Tensor:
    """The matrix, its rows contiguous."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def threads_for(work: int, threads: int) -> int:
    """How many of these threads so many multiplications are worth."""
    return 1 if work < _ALONE else max(1, min(threads, 64))
