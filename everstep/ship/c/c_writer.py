"""Write recorded operations as loops in C++, for one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from everstep.ship.c.c_values import Number, Value, dense, kind_of, product, sized
from everstep.ship.onnx.node_writer import Source
from everstep.ship.onnx.node_writer import sized as has_sizes
from everstep.ship.sizes import NotExported, Size, check_arguments
from everstep.tracing.operations import operation_name

_LINE = 64
"""Bytes of a cache line. Every constant begins at a multiple of it."""
_SMALL = 4096
"""Numbers of a constant that is stored although what it is computed from is smaller."""


class Constants:
    """What depends on parameters alone, in the order of the file of weights."""

    def __init__(self) -> None:
        self._places: dict[tuple[Any, ...], int] = {}
        self._held: list[Tensor] = []
        self.parts: list[bytes] = []
        self.size = 0

    def place(self, tensor: Tensor) -> int:
        """The place of a tensor in the file, in bytes."""
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._places:
            self._held.append(tensor)  # so that its address is nobody else's
            self._places[key] = self.size
            data = tensor.detach().contiguous().numpy().tobytes()
            data += bytes(-len(data) % _LINE)
            self.parts.append(data)
            self.size += len(data)
        return self._places[key]


class Lines:
    """The source of one function, and names that it has not used yet."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self._count = 0

    def fresh(self, wish: str) -> str:
        """A new name."""
        self._count += 1
        return f"{wish}{self._count}"


class CWriter:
    """Writes the operations of one recorded graph.

    Args:
        lines: the function to extend.
        source: the recorded graph.
        handlers: what writes each operation, by its PyTorch name.
        constants: the constants of the file.

    Attributes:
        values: of each node that is not constant, its value, or its values.
    """

    def __init__(self, lines: Lines, source: Source, handlers: dict[str, Any], constants: Constants):
        self.lines, self.source, self.handlers, self.constants = lines, source, handlers, constants
        self.values: dict[fx.Node, Any] = {}

    def write(self) -> None:
        """Write all nodes of the source.

        Raises:
            NotExported: an operation has no handler.
        """
        for node in self.source.nodes:
            if node.op == "call_function":
                self._write(node)

    def _write(self, node: fx.Node) -> None:
        args, kwargs = self.source.arguments(node)
        name, known = operation_name(node.target), self.source.known
        if name == "getitem":
            of, place = args
            if of in known:
                known[node] = known[of][place]
            else:
                self.values[node] = self.values[of][place]
            return
        if self._fixed(node, name, args, kwargs):
            given = fx.node.map_arg((node.args, dict(node.kwargs)), lambda one: known[one])
            with torch.no_grad():
                known[node] = node.target(*given[0], **given[1])  # type: ignore[operator]
            return
        handler = self.handlers.get(name)
        if handler is None:
            raise NotExported(f"it uses {name}, which C++ has no loop for here{node.meta.get('line', '')}")
        check_arguments(handler, name, self, node, *args, **kwargs)
        self.values[node] = handler(self, node, *args, **kwargs)

    def _fixed(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a value is computed now: not one that is larger than what it is made of."""
        if name == "recurrence" or has_sizes((args, kwargs)):
            return False
        if not all(one in self.source.known for one in node.all_input_nodes):
            return False
        value = node.meta["val"]
        if not isinstance(value, Tensor) or value.numel() <= _SMALL:
            return True
        return bool(value.numel() <= sum(one.meta["val"].numel() for one in node.all_input_nodes))

    def value(self, node: fx.Node) -> Value:
        """The value of a node."""
        if node in self.source.known:
            tensor: Tensor = self.source.known[node]
            at = f"reinterpret_cast<const {kind_of(tensor.dtype)}*>(stored + {self.constants.place(tensor)})"
            sizes = tuple(tensor.shape)
            return Value(at, kind_of(tensor.dtype), sizes, dense(sizes))
        found: Value = self.values[node]
        return found

    def kind(self, node: fx.Node) -> str:
        """The type of what a node gives."""
        return kind_of(node.meta["val"].dtype)

    def sizes(self, node: fx.Node) -> tuple[Number, ...]:
        """The sizes of what a node gives."""
        return tuple(sized(size) for size in self.source.shape(node))

    def line(self, text: str) -> None:
        """Add a line."""
        self.lines.text.append(text)

    def new(self, kind: str, sizes: Sequence[Number]) -> Value:
        """Room for numbers."""
        name = self.lines.fresh("v")
        self.line(f"{kind}* const {name} = s->arena.take<{kind}>({product(sizes)});")
        return Value(name, kind, tuple(sizes), dense(sizes))

    def loops(self, sizes: Sequence[Number], body: Callable[[list[str]], str]) -> None:
        """Nested loops over these sizes around a statement of their places."""
        places = [self.lines.fresh("i") if size != 1 else "0" for size in sizes]
        heads = [
            f"for (int64_t {place} = 0; {place} < {size}; ++{place})"
            for place, size in zip(places, sizes, strict=True)
            if size != 1
        ]
        self.line(" ".join([*heads, body(places)]))

    def each(self, kind: str, sizes: Sequence[Number], formula: Callable[..., str], *given: Value) -> Value:
        """New numbers, each by a formula of those at its place."""
        out = self.new(kind, sizes)
        parts = [value.spread(sizes) for value in given]
        if all(part.is_dense or not any(part.strides) for part in parts):  # one loop, which compilers like best
            steps = [1 if any(part.strides) else 0 for part in parts]
            flat = [Value(part.at, part.kind, (1,), (step,)) for part, step in zip(parts, steps, strict=True)]
            whole = Value(out.at, kind, (1,), (1,))
            self.loops([product(sizes)], lambda at: f"{whole.one(at)} = {formula(*(part.one(at) for part in flat))};")
        else:
            self.loops(sizes, lambda at: f"{out.one(at)} = {formula(*(part.one(at) for part in parts))};")
        return out

    def store(self, into: Value, value: Value) -> None:
        """Copy numbers to where others are."""
        source = value.spread(into.sizes)
        self.loops(into.sizes, lambda at: f"{into.one(at)} = {source.one(at)};")

    def copied(self, value: Value) -> Value:
        """The same numbers, side by side in memory of their own."""
        return self.each(value.kind, value.sizes, lambda x: x, value)

    def packed(self, value: Value) -> Value:
        """The same numbers side by side."""
        return value if value.is_dense else self.copied(value)

    def cast(self, value: Any, dtype: torch.dtype) -> Value:
        """The value of a node, a number or a size in this type."""
        kind = kind_of(dtype)
        if isinstance(value, fx.Node):
            found = self.value(value)
            return found if found.kind == kind else self.each(kind, found.sizes, lambda x: f"({kind})({x})", found)
        out = self.new(kind, ())
        self.line(f"{out.at}[0] = {self.number(value, dtype)};")
        return out

    def number(self, value: Any, dtype: torch.dtype) -> str:
        """A number or a size as an expression of this type."""
        return f"({kind_of(dtype)})({sized(value) if isinstance(value, Size) else literal(value, dtype)})"


def literal(value: float, dtype: torch.dtype) -> str:
    """A number in C++.

    >>> literal(float("inf"), torch.float32), literal(3, torch.int64), literal(0.5, torch.float32)
    ('INFINITY', 'INT64_C(3)', '0.5f')
    """
    if dtype == torch.bool:
        return "true" if value else "false"
    if not dtype.is_floating_point:
        return "INT64_MIN" if int(value) == -(1 << 63) else f"INT64_C({int(value)})"
    number = float(value)
    if number != number:
        return "NAN"
    if number in (float("inf"), float("-inf")):
        return "INFINITY" if number > 0 else "-INFINITY"
    return f"{number!r}f" if dtype == torch.float32 else repr(number)


def axis(dim: int, value: Value) -> int:
    """The dimension, not negative."""
    return dim % max(len(value.sizes), 1)
