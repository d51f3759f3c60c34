"""Products over all steps at once, of inputs by weights and for their gradients, with the engine's kernels.

Besides speed, they differ from PyTorch's in that each row of `mm` is independent of other rows and of the number of
threads, bit for bit. (So small products are not left to PyTorch either, which would be some 10 µs faster.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from everstep.native.c_tables import (
    Entry,
    OverSteps,
    OverThreads,
    Packing,
    Padding,
    RowsProduct,
    SumsHeader,
    argument,
    int64_array,
)
from everstep.native.kernels import kernels
from everstep.native.memory_pool import empty, scratch
from everstep.native.plain_memory import plain, watched

_ALONE = 2e6
"""Multiply-adds below which waking threads costs more than they save."""


class _Bodies:
    """The functions that threads run, for one dtype."""

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

    def multiply(self, threads: int, table: RowsProduct, matrix: Packing) -> None:
        """Pack the matrix, and multiply the rows by it."""
        numbers = int64_array(table, matrix)
        self.kernels.run(self.rows, ctypes.addressof(numbers), threads, len(table), 1)


_bodies = cache(_Bodies)


@cache
def _bf16_columns() -> int:
    return ctypes.cast(kernels(torch.float32, True).library.es_columns_bf16, ctypes.c_void_p).value or 0


def mm(x: Tensor, w: Tensor) -> Tensor:
    """`torch.mm(x, w)`: x (N, K) by w (K, M), with any strides.

    Calls PyTorch under autocast, on other devices, and where PyTorch's operations are observed.

    Raises:
        BuildError: the kernels cannot be compiled.
    """
    if torch.is_autocast_enabled("cpu") or not _takes(x, w) or x.shape[1] != w.shape[0]:
        return torch.mm(x, w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        product: Tensor = _Product.apply(x, w)
        return product
    return _product(x, w)


def over_steps(
    products: Sequence[OverSteps], totals: Sequence[OverThreads] = (), paddings: Sequence[Padding] = ()
) -> list[Entry]:
    """The table of `columns`, which computes sums over steps, and zeros, in the memory of a call."""
    shared = map(argument, SumsHeader._fields[3:])
    table: list[Entry] = [*SumsHeader(len(products), len(totals), len(paddings), *shared)]
    for one in (*products, *totals, *paddings):
        table += one
    return table


def columns(dtype: torch.dtype, bf16: bool = False) -> int:
    """The address of the function for `over_steps`.

    With `bf16`, factors are rounded to bfloat16 (`kernels.has_bf16`) and products summed in float32.
    """
    return _bf16_columns() if bf16 else _bodies(dtype).columns


def workspace_over_steps(dtype: torch.dtype, steps: int, rows: int, columns: int) -> int:
    """The workspace of a thread for one product, in numbers."""
    return int(_bodies(dtype).memory(steps, rows, columns))


def transposed(g: Tensor, x: Tensor, *, bf16: bool = False) -> Tensor:
    """gᵀ·x of g (N, M) and x (N, K), on the CPU, without gradients. For `bf16` see `columns`."""
    g, x = _lines(g), _lines(x)
    (steps, rows), width = g.shape, x.shape[1]
    out, threads = empty(g, rows, width), threads_for(steps * rows * width, torch.get_num_threads())
    workspace = workspace_over_steps(g.dtype, steps, rows, width)
    memory = scratch(g, threads * workspace)
    header = SumsHeader(1, 0, 0, memory.data_ptr(), workspace)
    one = OverSteps(
        *(g.data_ptr(), g.stride(0), x.data_ptr(), x.stride(0)),
        *(steps, rows, width, out.data_ptr(), width),
        others=0,
    )
    numbers = int64_array(header, one)
    kernels(g.dtype).run(columns(g.dtype, bf16), ctypes.addressof(numbers), threads)
    return out


def product(x: Tensor, w: Tensor, out: Tensor | None = None, *, bf16: bool = False) -> Tensor:
    """x (N, K) by w (K, M), on the CPU, without gradients. For `bf16` see `columns`."""
    if out is None:
        out = empty(x, x.shape[0], w.shape[1])
    if bf16:
        return out.copy_(torch.mm(x.bfloat16(), w.bfloat16()))
    return _product(x, w, out)


class Packed:
    """x · w for many x (N, K), with w (K, M), of any strides, packed once; on the CPU, without gradients.

    Rows are independent bit for bit. Later changes of w are not seen.

    Raises:
        BuildError: the kernels cannot be compiled.
    """

    def __init__(self, w: Tensor):
        (depth, columns), bodies = w.shape, _bodies(w.dtype)
        self._bodies, self._sizes = bodies, (depth, columns)
        self._memory = empty(w, bodies.kernels.packed_size(depth, columns) + 64 // w.element_size())
        self._place = (self._memory.data_ptr() + 63) // 64 * 64
        by_depth, by_column = w.stride()
        matrix = int64_array(Packing(w.data_ptr(), depth, columns, by_depth, by_column, self._place))
        threads = threads_for(depth * columns, torch.get_num_threads())
        bodies.kernels.run(0, ctypes.addressof(matrix), threads, 0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """x · w, (N, M)."""
        x, (depth, columns) = _lines(x), self._sizes
        out = empty(x, len(x), columns)
        table = RowsProduct(x.data_ptr(), x.stride(0), len(x), self._place, depth, columns, out.data_ptr(), columns)
        numbers, threads = int64_array(table), threads_for(len(x) * depth * columns, torch.get_num_threads())
        self._bodies.kernels.run(self._bodies.rows, ctypes.addressof(numbers), threads)
        return out


def _product(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    (steps, depth), columns = x.shape, w.shape[1]
    x = _lines(x)
    bodies = _bodies(x.dtype)
    if out is None:
        out = empty(x, steps, columns)
    line = 64 // x.element_size()
    memory = scratch(x, bodies.kernels.packed_size(depth, columns) + line)
    packed = (memory.data_ptr() + 63) // 64 * 64
    table = RowsProduct(x.data_ptr(), x.stride(0), steps, packed, depth, columns, out.data_ptr(), columns)
    by_depth, by_column = w.stride()
    matrix = Packing(w.data_ptr(), depth, columns, by_depth, by_column, packed)
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
        if want_w:  # in the layout of w, so that a parameter's gradient is contiguous like the parameter
            d_w = transposed(x, grad) if w.is_contiguous() else transposed(grad, x).t()
        return _product(grad, w.t()) if want_x else None, d_w


def _takes(*tensors: Tensor) -> bool:
    """Whether the kernels support these tensors."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.float64)
        and all(t.dtype == dtype and t.dim() == 2 and t.is_cpu for t in tensors)
        and plain(*tensors)
        and watched() is None
    )


def _lines(matrix: Tensor) -> Tensor:
    """The matrix with contiguous rows."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def threads_for(work: int, threads: int) -> int:
    """The number of threads that `work` multiplications are worth, at most `threads`."""
    return 1 if work < _ALONE else max(1, min(threads, 64))
