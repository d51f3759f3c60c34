"""Packing of ragged rows without padding, and unpacking, in pooled memory (`memory_pool.py`)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from everstep.backends.fused.runtime.work_layout import Rows
from everstep.native.c_tables import RaggedCopy, int64_array
from everstep.native.kernels import kernels
from everstep.native.memory_pool import empty

_ALONE = 1 << 16
"""Bytes below which one thread is faster than several."""


def packed(values: Tensor, rows: Rows) -> Tensor:
    """The valid steps (steps, …) of (rows, time, …)."""
    found: Tensor = _Packed.apply(values, rows)
    return found


def padded(values: Tensor, rows: Rows) -> Tensor:
    """The valid steps (steps, …) as (rows, time, …), padded with zeros."""
    found: Tensor = _Padded.apply(values, rows)
    return found


def pack(values: Tensor, rows: Rows) -> Tensor:
    """`packed` without a gradient."""
    values = values.contiguous()
    found = empty(values, rows.steps, *values.shape[2:])
    _move(found, values, rows, back=True)
    return found


def pad(values: Tensor, rows: Rows) -> Tensor:
    """`padded` without a gradient."""
    values = values.contiguous()
    found = empty(values, rows.count, rows.time, *values.shape[1:])
    _move(values, found, rows, back=False)
    return found


def _move(steps: Tensor, all_of_them: Tensor, rows: Rows, *, back: bool) -> None:
    size = all_of_them.nbytes
    each = size // max(1, rows.count * rows.time)
    offset, length = rows.addresses[:2]
    table = RaggedCopy(steps.data_ptr(), all_of_them.data_ptr(), offset, length, rows.count, rows.time, each, back)
    numbers = int64_array(table)
    threads = torch.get_num_threads() if size > _ALONE else 1
    library = kernels(torch.float64 if steps.dtype == torch.float64 else torch.float32)  # already compiled
    library.run(library.ragged, ctypes.addressof(numbers), threads)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return pack(values, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return padded(grad, ctx.rows), None


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return pad(values, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return packed(grad, ctx.rows), None
