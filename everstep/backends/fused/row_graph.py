"""The row graph: the computation of a step on one row of the batch, independent of memory and threads.

A `Node` is a value of each row, without the batch dimension. A `View` reads a node through strides, like PyTorch's
views, so that slices, transposes and broadcasts are not operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One value of a row.

    Attributes:
        op: "input", "literal", "product", "sum", "amax", "scatter", or the name of a pointwise operation.
        shape: the row shape; () is a single number.
        args: the arguments. A product reads a vector; a sum or maximum reads over the shape `over`.
        key: for an input its kind and number, for a literal its value, for a product its matrix.
        over: for a sum or maximum, the shape that is read; its own shape has 1 in reduced dimensions.
        parts: for a scatter, the position of each argument: shape, strides and offset.
    """

    op: str
    shape: Shape
    args: tuple[View, ...] = ()
    key: Any = None
    over: Shape = ()
    parts: tuple[Place, ...] = ()

    @property
    def size(self) -> int:
        """The number of elements in a row."""
        return math.prod(self.shape)

    @property
    def iteration(self) -> Shape:
        """The shape of the loop that computes the node."""
        return self.over if self.op in REDUCTIONS else self.shape


@dataclass(frozen=True)
class Place:
    """A strided part of a row: of `shape`, element (i, j, …) at offset + i·strides[0] + j·strides[1] + …"""

    shape: Shape
    strides: tuple[int, ...]
    offset: int = 0

    @cached_property
    def whole(self) -> bool:
        """Whether it covers a whole row of its shape, in order."""
        return self.offset == 0 and all(
            n == 1 or s == want for n, s, want in zip(self.shape, self.strides, dense(self.shape), strict=True)
        )

    def reduced(self) -> Place:
        """The place without dimensions of size 1."""
        kept = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        return Place(tuple(n for n, _ in kept), tuple(s for _, s in kept), self.offset)

    def indices(self) -> np.ndarray[Any, Any]:
        """The flat index of every element."""
        places = np.array([self.offset])
        for n, s in zip(self.shape, self.strides, strict=True):
            places = (places[:, None] + np.arange(n) * s).ravel()
        return places


@dataclass(frozen=True)
class View:
    """A node read through strides, over the shape of its reader."""

    node: Node
    place: Place

    @property
    def shape(self) -> Shape:
        """The shape over which the node is read."""
        return self.place.shape

    @cached_property
    def whole(self) -> bool:
        """Whether element (i, j, …) of the reader is element (i, j, …) of the node."""
        return self.place.whole and self.node.size == math.prod(self.shape)


REDUCTIONS = ("sum", "amax")
STOP = "stop"
"""The key of a copy that stops gradients."""
CHEAP = {
    *(
        "copy",
        "add",
        "sub",
        "mul",
        "neg",
        "relu",
        "abs",
        "maximum",
        "minimum",
        "where",
        "sign",
        "clamp_min",
        "clamp_max",
    ),
    *("gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"),
}
"""Pointwise operations that cost no more than moving the data."""


def dense(shape: Shape) -> tuple[int, ...]:
    """The row-major strides of a shape."""
    strides = [1]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides[: len(shape)])) if shape else ()


def flat(shape: Shape) -> Shape:
    """The shape without dimensions of size 1."""
    return tuple(n for n in shape if n != 1)


def whole(node: Node) -> View:
    """A view of the whole node."""
    return View(node, Place(node.shape, dense(node.shape)))


def broadcast(view: View, shape: Shape) -> View:
    """`view` broadcast to a larger shape, by PyTorch's rule."""
    missing = len(shape) - len(view.shape)
    strides = (0,) * missing + tuple(0 if n == 1 else s for n, s in zip(view.shape, view.place.strides, strict=True))
    return View(view.node, Place(shape, strides, view.place.offset))


@dataclass
class Builder:
    """Creates nodes, with deduplication of equal nodes and simplification of arithmetic on 0 and 1."""

    known: dict[Any, Node] = field(default_factory=dict)

    def node(
        self,
        op: str,
        shape: Shape,
        args: Sequence[View] = (),
        key: Any = None,
        over: Shape = (),
        parts: Sequence[Place] = (),
    ) -> Node:
        """The node with this description, new or existing."""
        identity = (op, shape, tuple((id(a.node), a.place) for a in args), key, over, tuple(parts))
        if identity not in self.known:
            self.known[identity] = Node(op, shape, tuple(args), key, over, tuple(parts))
        return self.known[identity]

    def literal(self, value: float, shape: Shape = ()) -> View:
        """A number broadcast to `shape`."""
        return View(self.node("literal", (), key=float(value)), Place(shape, (0,) * len(shape)))

    def input(self, kind: str, number: int, shape: Shape) -> View:
        """An input of the step, of kind "x", "const", "prev", …"""
        return whole(self.node("input", shape, key=(kind, number)))

    def apply(self, op: str, *args: View | float) -> View:
        """A pointwise operation on broadcast arguments."""
        shape = shape_of(args)
        views = [broadcast(self.sliced(a), shape) if isinstance(a, View) else self.literal(a, shape) for a in args]
        simple = self._simpler(op, views)
        if simple is not None:
            return simple
        return whole(self.node(op, shape, views))

    def sliced(self, view: View) -> View:
        """A slice of a pointwise sum, as a sum of slices, to avoid a loop over the whole row."""
        node, place = view.node, view.place.reduced()
        if (
            node.op not in CHEAP
            or node.key is not None
            or view.whole
            or len(flat(node.shape)) != 1
            or len(place.shape) != 1
        ):
            return view
        axis = next(d for d, n in enumerate(node.shape) if n != 1)
        first, step = place.offset, place.strides[0]
        args = []
        for arg in node.args:
            stride = arg.place.strides[axis]
            args.append(View(arg.node, Place(place.shape, (stride * step,), arg.place.offset + stride * first)))
        part = self.apply(node.op, *args)
        strides = iter(part.place.strides)
        return View(
            part.node,
            Place(view.shape, tuple(1 if n == 1 else next(strides) for n in view.shape), part.place.offset),
        )

    def total(self, view: View, dims: Iterable[int], op: str = "sum") -> View:
        """The sum (or maximum) over `dims`, which keep size 1."""
        dims = set(dims)
        shape = tuple(1 if d in dims else n for d, n in enumerate(view.shape))
        if shape == view.shape:
            return view
        return whole(self.node(op, shape, [view], over=view.shape))

    def product(self, vector: View, matrix: Any, size: int) -> View:
        """vector · matrix; `matrix` is a key that the code generator interprets."""
        outside = vector.node.op == "literal" or (
            vector.node.op == "input" and vector.node.key[0] not in ("prev", "dnext")
        )
        return whole(self.node("product", (size,), [self.copy(vector) if outside else self.solid(vector)], key=matrix))

    def solid(self, view: View) -> View:
        """The values with stride 1, so that a product can read them."""
        steps = [s for n, s in zip(view.shape, view.place.strides, strict=True) if n != 1]
        return view if steps == list(dense(view.place.reduced().shape)) else self.copy(view)

    def copy(self, view: View) -> View:
        """The values as a new node."""
        return whole(self.node("copy", view.shape, [view]))

    def stop(self, view: View) -> View:
        """The values without a gradient."""
        return whole(self.node("copy", view.shape, [view], key=STOP))

    def scatter(self, shape: Shape, parts: Sequence[tuple[Place, View]]) -> View:
        """A row assembled from parts, zero elsewhere; overlapping parts are added."""
        places = [(place.reduced(), view) for place, view in parts]
        if len(places) == 1 and places[0][0].whole and math.prod(places[0][0].shape) == math.prod(shape):
            return (
                View(places[0][1].node, Place(shape, dense(shape)))
                if places[0][1].whole
                else self._one(shape, places[0][1])
            )
        layers: list[tuple[set[int], list[tuple[Place, View]]]] = []
        for place, view in places:
            taken = set(place.indices().tolist())
            for used, members in layers:
                if not used & taken:
                    used |= taken
                    members.append((place, view))
                    break
            else:
                layers.append((taken, [(place, view)]))
        whole_rows = [
            whole(self.node("scatter", shape, [self._fresh(v) for _, v in members], parts=[p for p, _ in members]))
            for _, members in layers
        ]
        total = whole_rows[0]
        for other in whole_rows[1:]:
            total = self.apply("add", total, other)
        return total

    def _one(self, shape: Shape, view: View) -> View:
        copied = self.copy(view)
        return View(copied.node, Place(shape, dense(shape)))

    def _fresh(self, view: View) -> View:
        """A view of a whole computed node, so that its loop can store it anywhere."""
        computed = view.node.op not in ("input", "literal", "product", "scatter", *REDUCTIONS)
        alike = flat(view.node.shape) == flat(view.shape)
        return view if view.whole and computed and alike else self.copy(view)

    def _simpler(self, op: str, views: list[View]) -> View | None:
        values = [v.node.key if v.node.op == "literal" else None for v in views]
        shape = views[0].shape
        if op == "mul" and 0.0 in values and None in values:
            return None  # 0 · NaN is NaN
        if (op == "mul" and values[0] == 1) or (op == "add" and values[0] == 0):
            return views[1]
        if (op in ("mul", "div") and values[1] == 1) or (op in ("add", "sub") and values[1] == 0):
            return views[0]
        a, b = values if len(values) == 2 else (None, None)
        if op in ("add", "sub", "mul") and a is not None and b is not None:
            return self.literal(a + b if op == "add" else a - b if op == "sub" else a * b, shape)
        if op == "neg" and values[0] is not None:
            return self.literal(-values[0], shape)
        return None


def shape_of(args: Sequence[View | float]) -> Shape:
    """The broadcast shape of the arguments."""
    shapes = [a.shape for a in args if isinstance(a, View)]
    return tuple(int(n) for n in np.broadcast_shapes(*shapes)) if shapes else ()


def ordered(ends: Iterable[Node]) -> list[Node]:
    """All nodes that `ends` need, in topological order."""
    done: dict[int, Node] = {}
    stack = [(node, False) for node in reversed(list(ends))]
    while stack:
        node, seen = stack.pop()
        if id(node) in done:
            continue
        if seen:
            done[id(node)] = node
        else:
            stack.append((node, True))
            stack.extend((arg.node, False) for arg in reversed(node.args))
    return list(done.values())
