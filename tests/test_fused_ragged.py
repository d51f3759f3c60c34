"""Sums over steps, where what is multiplied lies with padding, or belongs to the step before."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from everstep.scanning.fused import _rows, toolchain
from everstep.scanning.fused.products import ALL, BEFORE, USED, USED_BEFORE, columns, room_over_steps
from everstep.scanning.fused.table import Rows
from everstep.scanning.fused.threads import has_short, kernels

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")

KINDS = [(torch.float32, False), (torch.float64, False), (torch.float32, True)]


def gathered(x: Tensor, others: Tensor, rows: Rows, way: int) -> Tensor:
    """What belongs to each step, one after the other."""
    found, here = [], 0
    for r, length in enumerate(rows.length.tolist()):
        for step in range(length):
            before = way in (BEFORE, USED_BEFORE)
            if before and rows.resets is not None and rows.resets[here]:
                found.append(others[rows.count + r])
            elif before and step == 0:
                found.append(others[r])
            else:
                place = here if way in (ALL, BEFORE) else r * rows.time + step
                found.append(x[place - before])
            here += 1
    return torch.stack(found) if found else x[:0]


@pytest.mark.parametrize(("dtype", "short"), KINDS)
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("lengths", [[3], [1, 1], [0, 5, 0, 0, 4, 7, 0], [7, 0], [300, 1, 0, 257, 256, 2], [0, 0]])
def test_rows_of_steps(lengths: list[int], resets: bool, dtype: torch.dtype, short: bool) -> None:
    if short and not has_short():
        pytest.skip("no bfloat16 in this processor")
    torch.manual_seed(0)
    count, time = len(lengths), max([*lengths, 1]) + 2
    marks = torch.rand(count, time) < 0.3 if resets else None
    rows = _rows(torch.empty(count, time), torch.tensor(lengths), marks)
    for m, n in ((40, 40), (3, 200), (130, 3), (90, 1)):
        g, padded, others = (
            torch.randn(k, w, dtype=dtype) for k, w in ((rows.steps, m), (count * time, n), (2 * count, n))
        )
        array, width = torch.randn(count * time, 4, dtype=dtype), 4 * dtype.itemsize
        wanted = array.clone()
        for r, length in enumerate(lengths):
            wanted[r * time + length : (r + 1) * time] = 0
        for way in (ALL, USED, BEFORE, USED_BEFORE):
            x = padded if way in (USED, USED_BEFORE) else padded[: rows.steps]
            found = []
            for threads, of, how in ((1, gathered(x, others, rows, way), ALL), (1, x, way), (3, x, way)):
                out = torch.full((m, n), torch.nan, dtype=dtype)
                room = room_over_steps(dtype, rows.steps, m, n)
                memory = torch.empty(threads * room, dtype=dtype)
                table = [1, 0, 1, memory.data_ptr(), room, *rows.addresses[:3], count, time]
                table += [g.data_ptr(), m, of.data_ptr(), n, rows.steps, m, n, out.data_ptr(), n]
                table += [how, others.data_ptr(), n, array.data_ptr(), width]
                numbers = (ctypes.c_int64 * len(table))(*table)
                kernels(dtype, short).run(columns(dtype, short), ctypes.addressof(numbers), threads)
                found.append(out)
            assert torch.equal(found[0], found[1]), (way, m, n)
            assert torch.equal(found[0], found[2]), (way, m, n)
        assert torch.equal(array, wanted)
