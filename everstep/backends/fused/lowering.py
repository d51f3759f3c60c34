"""Translation of a traced step to the row graph: the batch dimension, views and products.

Other operations are in `pointwise.py` and `rowwise.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from everstep.backends.fused.pointwise import POINTWISE
from everstep.backends.fused.reader import Handler, filled, scaled, without
from everstep.backends.fused.row_graph import Builder, Place, Shape, View, broadcast, dense
from everstep.backends.fused.rowwise import ROWWISE
from everstep.backends.fused.split import PRODUCTS, Split
from everstep.tracing.operations import operation_name
from everstep.tracing.refusals import Untraceable, node_told, size_told


@dataclass(frozen=True)
class Lowered:
    """A step ready for the loop.

    Attributes:
        before: `before(parameters, x leaves, rows)` returns the inputs of all steps, then the constants; PyTorch runs
            it over all steps at once, with its own derivatives.
        inputs: row shape of each input.
        factors: for each input that is a product of x and a constant: the index of the constant, and the row size of
            the factor that `before` returns instead.
        constants: shape of each constant, which depends on parameters alone.
        states: row shape of each leaf of the state that steps change.
        held: row shape of each leaf with free sizes, which steps only read.
        output, following: y and the leaves of the new state.
        builder: the builder of the nodes.
    """

    before: fx.GraphModule
    inputs: tuple[Shape, ...]
    factors: dict[int, tuple[int, int]]
    constants: tuple[Shape, ...]
    states: tuple[Shape, ...]
    held: tuple[Shape, ...]
    output: View
    following: tuple[View, ...]
    builder: Builder


_BATCH_STRIDE = 1 << 40
"""A stride that marks the batch dimension."""
_SAME = ("alias", "lift_fresh_copy", "clone")
_VIEWING = (
    *("t", "transpose", "permute", "view", "_unsafe_view", "expand", "squeeze", "unsqueeze", "slice", "select"),
    *("split", "split_with_sizes", "unsafe_split", "unbind", "diagonal", "chunk", "flip"),
)


def known(node: fx.Node) -> bool:
    """Whether the loop can compute the node."""
    name = operation_name(node.target)
    ours = ("getitem", "_to_copy", *_SAME, *_VIEWING, *PRODUCTS)
    return name in ours or name in POINTWISE or name in ROWWISE or filled(node) is not None


class Lowering:
    """Translates the part of a traced step that the loop computes; see `run`."""

    def __init__(self, split: Split, dtype: torch.dtype):
        self.split, self.rows, self.dtype = split, split.rows, dtype
        self.build = Builder()
        self.rowwise: dict[fx.Node, View | tuple[View, ...]] = {}
        self.at: tuple[int, int] | None = None
        """The batch of the current pointwise operation: its dimension from the end, and the size folded into it."""

    def run(self) -> Lowered:
        split = self.split
        held = self._leaves("held", [n for k, n in enumerate(split.state) if k in split.held])
        states = self._leaves("prev", [n for k, n in enumerate(split.state) if k not in split.held])
        for node in split.inside:
            self.rowwise[node] = self._inside(node)
        y, *following = (self._end(end) for k, end in enumerate(split.ends) if k - 1 not in split.held)
        inputs = tuple(self._first(n) for n in split.inputs)
        factors = {}
        for number, node in enumerate(split.inputs):
            found = split.factors(node)
            if found is not None:
                factors[number] = split.constant(found[1]), math.prod(self._first(found[0]))
        constants = split.constant_shapes
        if not (inputs or constants or states or held):
            raise Untraceable("its step reads no input, parameter or state: nothing is left to compile")
        return Lowered(split.before(), inputs, factors, constants, states, held, y, tuple(following), self.build)

    def _leaves(self, kind: str, nodes: Sequence[fx.Node]) -> tuple[Shape, ...]:
        """The row shapes of state leaves, which are inputs of this kind."""
        shapes = tuple(self.shape(node) for node in nodes)
        for number, (node, shape) in enumerate(zip(nodes, shapes, strict=True)):
            self._check_dtype(node, "carries", logic=kind == "held")
            self.rowwise[node] = self.build.input(kind, number, shape)
        return shapes

    def _end(self, node: fx.Node) -> View:
        self._check_dtype(node, "gives", logic=False)
        view, shape = self.view(node), self._first(node)
        return view if view.shape == shape else broadcast(view, shape)

    def _first(self, node: fx.Node) -> Shape:
        """The row shape of a tensor whose first dimension is the batch."""
        if self._batch(node) != (0, 1):
            raise Untraceable(f"its step has ({self._size(node.meta['val'])}) where the batch should be first")
        return self.shape(node)

    def _inside(self, node: fx.Node) -> Any:
        """`_call`, with the user's line in refusals."""
        try:
            return self._call(node)
        except Untraceable as reason:
            raise Untraceable(f"{reason}{node.meta.get('line', '')}") from None

    # reading

    def value(self, node: Any) -> Any:
        """A node in the loop: a view of a row, several views, or a number; the batch may be any dimension."""
        if not isinstance(node, fx.Node):
            return float(node)
        if node not in self.rowwise:
            self.rowwise[node] = self._constant(node) if self.split.is_constant(node) else self._input(node)
        return self.rowwise[node]

    def operand(self, node: Any) -> View | float:
        """`value` as an operand of the current operation; a constant loses the dimension aligned with the batch."""
        value: View | float | tuple[View, ...] = self.value(node)
        if isinstance(value, tuple):
            raise Untraceable(f"{node_told(node)} is several tensors")
        if isinstance(value, float):
            return value
        if self._batch(node):
            wanted = self.at or (self._rank(node), 1)
            if self._from_end(node) != wanted:
                raise Untraceable(f"its step moves the batch to another dimension ({self._size(node.meta['val'])})")
            return value
        beside = self._rank(node) - self.at[0] if self.at and self.at[1] == 1 else -1
        return without(value, [beside]) if beside >= 0 else value

    def view(self, node: Any) -> View:
        """`operand`, with numbers as literals."""
        value = self.operand(node)
        return value if isinstance(value, View) else self.build.literal(value)

    def shape(self, node: Any) -> Shape:
        """The row shape of a tensor with the batch in any dimension."""
        value = node.meta["val"]
        if not isinstance(value, Tensor) or self.split.batch(value.shape) is None:
            came = f"({self._size(value)})" if isinstance(value, Tensor) else type(value).__name__
            raise Untraceable(f"its step has {came} where rows of the batch are expected")
        return self.split.row(value.shape)

    def dims(self, node: Any, tensor: Any, given: Sequence[int]) -> list[int]:
        """Dimensions of a tensor as dimensions of a row; the batch dimension is refused."""
        rank, place = self._rank(tensor), self._batch(tensor)
        dims = [d % rank for d in given]
        if place is None or place[0] in dims:
            raise Untraceable(f"its step sets rows of the batch against one another by {operation_name(node.target)}")
        return [d - (place[1] == 1 and d > place[0]) for d in dims]

    def _size(self, value: Tensor) -> str:
        """A shape as text, with the traced batch size by name."""
        return ", ".join(size_told(n, self.rows) for n in value.shape)

    def _batch(self, node: fx.Node) -> tuple[int, int] | None:
        value = node.meta.get("val")
        return self.split.batch(value.shape) if isinstance(value, Tensor) else None

    def _from_end(self, node: fx.Node) -> tuple[int, int] | None:
        place = self._batch(node)
        return place and (self._rank(node) - place[0], place[1])

    @staticmethod
    def _rank(node: fx.Node) -> int:
        rank: int = node.meta["val"].dim()
        return rank

    def _constant(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.is_complex():
            raise Untraceable(f"{node_told(node)} is not a tensor of real numbers")
        # a constant that was expanded over the batch is represented by its row
        if self._batch(node) or (node.op == "call_function" and filled(node) is not None):
            return self._call(node)
        return self.build.input("const", self.split.constant(node), tuple(value.shape))

    def _input(self, node: fx.Node) -> View:
        """A row of a value computed before the loop."""
        self._check_dtype(node)
        number, bias = self.split.input(node)
        view = self.build.input("x", number, self._first(node))
        return view if bias is None else self.build.apply("add", view, self.value(bias))

    def _check_dtype(self, node: fx.Node, what: str = "computes", logic: bool = True) -> None:
        """Refuse other dtypes; with `logic`, booleans are accepted, as 1 and 0."""
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype != self.dtype and not (logic and value.dtype == torch.bool):
            raise Untraceable(f"its step {what} {value.dtype}; the compiled loop holds {self.dtype} alone, like x")

    # translating

    def _call(self, node: fx.Node) -> Any:
        name = operation_name(node.target)
        if name == "getitem":
            return self.value(node.args[0])[node.args[1]]
        number = filled(node)
        if number is not None:
            return self.build.literal(number, self.split.row(node.meta["val"].shape))
        self._check_dtype(node)
        if name in _SAME:
            return self.value(node.args[0])
        if name == "_to_copy":
            return self._cast(node)
        if name == "flip":
            return self._flipped(node)
        if name in _VIEWING:
            return self._viewed(node, name)
        if name in PRODUCTS:
            return self._product(node, name)
        if name in ROWWISE:
            first: Any = node.args[0]
            return self._beside(self._from_end(first[0] if isinstance(first, list) else first), ROWWISE[name], node)
        if name in POINTWISE:
            return self._beside(self._from_end(node), POINTWISE[name], node)
        raise Untraceable(f"its step uses {name}, which the compiled loop does not hold")

    def _beside(self, at: tuple[int, int] | None, handler: Handler, node: fx.Node) -> Any:
        outer, self.at = self.at, at
        result = handler(self, node)
        self.at = outer
        return result

    def _cast(self, node: Any) -> Any:
        """A conversion to the loop's dtype or to booleans; `_check_dtype` refuses other dtypes."""
        came: Any = node.args[0]
        if node.meta["val"].dtype != torch.bool or came.meta["val"].dtype == torch.bool:
            return self.value(came)
        return self._beside(self._from_end(node), lambda self, node: self.build.apply("ne", self.view(came), 0.0), node)

    def _flipped(self, node: Any) -> View:
        source = self.value(node.args[0])
        strides, offset = list(source.place.strides), source.place.offset
        for d in self.dims(node, node, node.args[1]):
            offset += (source.shape[d] - 1) * strides[d]
            strides[d] = -strides[d]
        return View(source.node, Place(source.shape, tuple(strides), offset))

    def _viewed(self, node: Any, name: str) -> View | tuple[View, ...]:
        """A view, with strides computed by PyTorch on a tensor without storage."""
        source, place = self.value(node.args[0]), self._batch(node.args[0])
        if not isinstance(source, View):
            raise Untraceable(f"its step takes a view of {node_told(node.args[0])}, which is no single tensor")
        if min(source.place.strides, default=0) < 0:  # PyTorch has no negative strides
            source = self.build.copy(source)
        target = torch.ops.aten.view if name == "_unsafe_view" else node.target
        shadow, step = self._shadow(source, place, _BATCH_STRIDE)
        try:
            result = target(shadow, *node.args[1:], **node.kwargs)
        except RuntimeError:
            if name not in ("view", "_unsafe_view") or (place and place[0] > 0):
                raise Untraceable(f"its step folds the batch into another dimension by {name}") from None
            # the view needs contiguous rows, so the row is copied in order
            source = self._ordered(source)
            shadow, step = self._shadow(source, place, math.prod(source.shape))
            result = target(shadow, *node.args[1:])
        several = isinstance(result, (list, tuple))
        views = tuple(self._row_of(source, r, step) for r in (result if several else [result]))
        return views if several else views[0]

    def _ordered(self, source: View) -> View:
        strides = dense(source.shape)
        if Place(source.shape, source.place.strides).whole:
            return View(source.node, Place(source.shape, strides, source.place.offset))
        return self.build.copy(source)

    def _shadow(self, source: View, place: tuple[int, int] | None, step: int) -> tuple[Tensor, int]:
        """A tensor with the strides of `source` and a batch dimension, and its row stride (0 if expanded)."""
        shape, strides = list(source.shape), list(source.place.strides)
        if place is None:
            step = 0
        elif place[1] == 1:
            shape.insert(place[0], self.rows)
            strides.insert(place[0], step)
        else:
            at, folded = place
            shape[at], step = folded * self.rows, folded * strides[at]
        return torch.empty(1, device="meta").as_strided(shape, strides, source.place.offset), step

    def _row_of(self, source: View, shadow: Tensor, step: int) -> View:
        shape, offset = list(shadow.shape), int(shadow.storage_offset())
        strides = [0 if n == 1 else stride for n, stride in zip(shape, shadow.stride(), strict=True)]
        place = self.split.batch(shadow.shape)
        if place is not None:
            at, folded = place
            apart = strides[at] * folded
            shape[at] = folded
            if folded == 1:
                del shape[at], strides[at]
        if (
            (apart if place else 0) != step
            or any(s >= _BATCH_STRIDE for s in (*strides, offset))
            or (step and offset >= step)
        ):
            raise Untraceable(f"its step takes rows of the batch apart ({self._size(shadow)})")
        return View(source.node, Place(tuple(shape), tuple(strides), offset))

    # products

    def _product(self, node: Any, name: str) -> View:
        *added, left, right = node.args
        product = self._matmul(node, left, right)
        return self._beside(self._from_end(node), partial(_plus, product=product), node) if added else product

    def _matmul(self, node: Any, left: Any, right: Any) -> View:
        """(g, n, k) by (g, k, m) of a row: products with constant matrices, or sums of pointwise products."""
        (a, rows_a), (b, rows_b) = self._stacked(left), self._stacked(right)
        if rows_a == 2 or rows_b == 1 or (rows_a, rows_b) == (1, 2):
            raise Untraceable(f"its step sets rows of the batch against one another by {operation_name(node.target)}")
        # one product per vector, unless a free size counts the vectors; then one loop
        free = self.split.free and any(n % self.split.free == 0 for n in (*a.shape, b.shape[2]) if n)
        if _is_constant(b) and not free:
            result = self._by_matrices(a, b)
        elif _is_constant(a) and not free:
            result = _turned(self._by_matrices(_turned(b), _turned(a)))
        else:
            (g, n, k), m = a.shape, b.shape[2]
            (a0, a1, a2), (b0, b1, b2) = a.place.strides, b.place.strides
            spread_a = View(a.node, Place((g, n, m, k), (a0, a1, 0, a2), a.place.offset))
            spread_b = View(b.node, Place((g, n, m, k), (b0, 0, b2, b1), b.place.offset))
            result = without(self.build.total(self.build.apply("mul", spread_a, spread_b), [3]), [3])
        lacking, place = 3 - self._rank(node), self._batch(node)
        gone = [*range(lacking), *([place[0] + lacking] if place and place[1] == 1 else [])]
        return without(result, gone)

    def _stacked(self, node: fx.Node) -> tuple[View, int | None]:
        """A row of one or many matrices as (g, n, k), and which of these dimensions holds the batch."""
        view, place, lacking = self.value(node), self._batch(node), 3 - self._rank(node)
        shape, strides = list(view.shape), list(view.place.strides)
        new = [place[0]] if place and place[1] == 1 else []
        for at in (*new, *[0] * lacking):
            shape.insert(at, 1)
            strides.insert(at, 0)
        return View(view.node, Place(tuple(shape), tuple(strides), view.place.offset)), place and place[0] + lacking

    def _by_matrices(self, a: View, b: View) -> View:
        """The product of each of the n vectors of the g-th part of a row with the g-th constant matrix."""
        (parts, n, k), m = a.shape, b.shape[2]
        first, second, step = a.place.strides
        results = []
        for g in range(parts):
            part = Place((k, m), b.place.strides[1:], b.place.offset + g * b.place.strides[0])
            matrix = self._matrix(View(b.node, part))
            for i in range(n):
                vector = View(a.node, Place((k,), (step,), a.place.offset + g * first + i * second))
                results.append(self.build.product(vector, matrix, m))
        placed = [(Place((m,), (1,), number * m), result) for number, result in enumerate(results)]
        return self.build.scatter((parts, n, m), placed) if len(placed) > 1 else _shaped(results[0], (1, 1, m))

    def _matrix(self, view: View) -> int:
        """The index of the constant that is this matrix."""
        number: int = view.node.key[1]
        if view.whole and view.node.shape == view.shape:
            return number
        return self.split.constant(self.split.constants[number][0], view.place)


def _plus(self: Lowering, node: Any, product: View) -> View:
    """β · addend + α · product."""
    product = scaled(self.build, product, node.kwargs.get("alpha", 1))
    bias = scaled(self.build, self.view(node.args[0]), node.kwargs.get("beta", 1))
    return self.build.apply("add", product, bias)


def _is_constant(view: View) -> bool:
    return view.node.op == "input" and view.node.key[0] == "const"


def _turned(view: View) -> View:
    """Every matrix transposed."""
    (g, n, k), (a, b, c) = view.shape, view.place.strides
    return View(view.node, Place((g, k, n), (a, c, b), view.place.offset))


def _shaped(view: View, shape: Shape) -> View:
    """The whole node over another shape."""
    return View(view.node, Place(shape, dense(shape)))
