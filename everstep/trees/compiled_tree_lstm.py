"""All levels of an N-ary Tree-LSTM in one compiled pass, and their derivative: `native/tree_lstm.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.native.c_tables import Address, Count, Integers, Numbers, NumbersOut, Packing, Wait, int64_array
from everstep.native.kernels import GATE, has_bf16, kernels, loops
from everstep.native.memory_pool import empty, scratch
from everstep.native.plain_memory import plain, watched
from everstep.native.products import threads_for, transposed
from everstep.trees.forest import Forest
from everstep.trees.written_out import OverLevels

_NAMES = {torch.float32: "f32", torch.float64: "f64"}
_LOOPS = tuple(f"es_tree_{loop}_{numbers}" for loop in ("ahead", "back") for numbers in _NAMES.values())


class TreeCall(NamedTuple):
    """What a compiled loop reads.

    Attributes:
        levels, trees, size, arity: sizes; H and N.
        fed: 1: x has a row for each inner node; 0: one for all.
        ends: (levels,), how many inner nodes there are down to each level.
        rows: (inner,), the row of each inner node among all nodes.
        x: of `inputs`, (inner, (3 + N) H) or (1, (3 + N) H).
        h, c: (nodes, H), of which the rows of leaves are given.
        gates, squashed: (inner, (3 + N) H) and (inner, H): the gates, and tanh(c).
        by_h, by_c: (nodes, H), derivatives by h and c; those by c are given of roots alone.
        above: (inner, (3 + N) H), derivatives by the sums that gates are made of.
        packed: the matrix that children, or `above`, are multiplied by.
        gemm, panel, wait, gate: the product, the columns of its panels, the barrier of threads and its memory.
    """

    levels: Count
    trees: Count
    size: Count
    arity: Count
    fed: Count
    ends: Integers
    rows: Integers
    x: Numbers
    h: NumbersOut
    c: NumbersOut
    gates: NumbersOut
    squashed: NumbersOut
    by_h: NumbersOut
    by_c: NumbersOut
    above: NumbersOut
    packed: Numbers
    gemm: Address
    panel: Count
    wait: Wait
    gate: Address


def available(forest: Forest, arity: int, h: Tensor, c: Tensor, x: Tensor, matrix: Tensor) -> bool:
    """Whether all inner nodes have so many children, the tensors are plain and on the CPU, states are float32 or
    float64, the matrix too or bfloat16 beside float32, which the processor multiplies, and there is a compiler."""
    short = matrix.dtype == torch.bfloat16 and h.dtype == torch.float32
    return (
        forest.fewest_children == forest.most_children == arity
        and h.dtype in _NAMES
        and c.dtype == x.dtype == h.dtype
        and (short or matrix.dtype == h.dtype)
        and all(tensor.is_cpu for tensor in (h, c, x, matrix))
        and plain(h, c, x, matrix)
        and watched() is None
        and _library() is not None
        and (not short or has_bf16())
    )


def _library() -> ctypes.CDLL | None:
    return loops("tree_lstm", TreeCall, _LOOPS, "Tree-LSTMs run level by level in PyTorch, more slowly")


class CompiledLevels(OverLevels):
    """All levels of a forest whose inner nodes have N children each, by the (3 + N) H × N H matrix U."""

    def ahead(self, forest: Forest, h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gates, and tanh(c)."""
        x = x.contiguous()
        gates, squashed = empty(h, forest.inner, x.shape[1]), empty(h, forest.inner, h.shape[1])
        _run("ahead", forest, weights[0].t(), h=h, c=c, x=x, gates=gates, squashed=squashed)
        return gates, squashed

    def back(
        self,
        forest: Forest,
        kept: Sequence[Tensor],
        h: Tensor,
        c: Tensor,
        by_h: Tensor,
        by_c: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """One product over all inner nodes for the matrix: their children are all nodes but the roots."""
        gates, squashed = kept
        above = empty(gates, *gates.shape)
        given = {"h": h, "c": c, "x": x, "gates": gates, "squashed": squashed}
        _run("back", forest, weights[0], **given, by_h=by_h, by_c=by_c, above=above)
        by_x = above if len(x) == len(above) else above.sum(0, keepdim=True)
        children = h[forest.trees :].view(forest.inner, weights[0].shape[1])
        return by_x, [transposed(above, children, bf16=_short(weights[0])).to(weights[0].dtype)]


def _short(matrix: Tensor) -> bool:
    """Whether products round their factors to bfloat16."""
    return matrix.dtype == torch.bfloat16


def _run(loop: str, forest: Forest, matrix: Tensor, **arrays: Tensor) -> None:
    """Run `es_tree_LOOP`; children, or what is above sums, are multiplied by the matrix."""
    like, library = arrays["h"], _library()
    assert library is not None
    functions, line = kernels(like.dtype, _short(matrix)), 64 // like.itemsize
    matrix = matrix.to(like.dtype)
    memory = scratch(like, functions.packed_size(*matrix.shape) + line)
    packed = (memory.data_ptr() + 63) // 64 * 64
    threads = threads_for(forest.inner * matrix.numel(), torch.get_num_threads())
    counts = [level.inner for level in forest.levels if level.inner]
    ends, gate = int64_array(accumulate(counts)), ctypes.create_string_buffer(GATE)
    size = like.shape[1]
    places = {name: array.data_ptr() for name, array in arrays.items()}
    table = TreeCall(
        levels=len(counts),
        trees=forest.trees,
        size=size,
        arity=min(matrix.shape) // size,
        fed=len(arrays["x"]) > 1,
        ends=ctypes.addressof(ends),
        rows=forest.inner_rows.data_ptr(),
        packed=packed,
        gemm=functions.gemm,
        panel=functions.panel,
        wait=functions.barrier,
        gate=ctypes.addressof(gate),
        **{name: places.get(name, 0) for name in _ARRAYS},
    )
    (depth, columns), (by_depth, by_column) = matrix.shape, matrix.stride()
    job = Packing(matrix.data_ptr(), depth, columns, by_depth, by_column, packed)
    numbers = int64_array(table, job)
    body = ctypes.cast(getattr(library, f"es_tree_{loop}_{_NAMES[like.dtype]}"), ctypes.c_void_p).value or 0
    functions.run(body, ctypes.addressof(numbers), threads, len(table), 1)


_ARRAYS = ("x", "h", "c", "gates", "squashed", "by_h", "by_c", "above")
