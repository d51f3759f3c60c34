"""The largest numbers of each row, in one compiled pass: `native/largest.cpp`."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.native.c_tables import Count, IntegersOut, Numbers, NumbersOut, int64_array
from everstep.native.kernels import kernels, loops
from everstep.native.plain_memory import plain, watched

_NAMES = {torch.float32: "f32", torch.float64: "f64"}
_LOOPS = tuple(f"es_largest_{numbers}" for numbers in _NAMES.values())
_FEW = 32
"""Most numbers of a row that are worth inserting one by one."""
_SHARE = 1 << 17
"""Numbers above which one more thread pays off."""


class LargestCall(NamedTuple):
    """What a compiled loop reads.

    Attributes:
        rows, columns, wanted: their numbers.
        numbers: (rows, columns).
        best, places: (rows, wanted), the largest ones and their columns.
    """

    rows: Count
    columns: Count
    wanted: Count
    numbers: Numbers
    best: NumbersOut
    places: IntegersOut


def largest(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest numbers of each row (rows, columns), in falling order, and their columns.

    NaN counts as the largest. The column of a result of −∞ may be any.

    >>> largest(torch.tensor([[0.5, 2.0, 1.0]]), 2)[1].tolist()
    [[1, 2]]
    """
    library = _library() if _takes(numbers, count) else None
    if library is None:
        found = numbers.topk(count)
        return found.values, found.indices
    rows, columns = numbers.shape
    best, places = numbers.new_empty(rows, count), numbers.new_empty(rows, count, dtype=torch.int64)
    table = LargestCall(rows, columns, count, numbers.data_ptr(), best.data_ptr(), places.data_ptr())
    threads = max(1, min(torch.get_num_threads(), rows, numbers.numel() // _SHARE))
    loop = getattr(library, f"es_largest_{_NAMES[numbers.dtype]}")
    kernels(numbers.dtype).parallel(loop, int64_array(table), threads)
    return best, places


def _takes(numbers: Tensor, count: int) -> bool:
    fits = numbers.is_cpu and numbers.dtype in _NAMES and numbers.dim() == 2 and numbers.is_contiguous()
    return fits and 1 <= count <= min(_FEW, numbers.shape[1]) and plain(numbers) and watched() is None


def _library() -> ctypes.CDLL | None:
    return loops("largest", LargestCall, _LOOPS, "beam search sorts the vocabulary, slowly")
