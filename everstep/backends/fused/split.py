"""The split of a traced step into a part that PyTorch runs over all steps before the loop, and the loop's part."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from everstep.backends.fused.row_graph import Place, Shape
from everstep.native import products
from everstep.tracing.graph_modules import graph_module
from everstep.tracing.operations import operation_name
from everstep.tracing.refusals import Untraceable, size_told
from everstep.tracing.trace import StepGraph

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


class Split:
    """The dependencies of a step, and its split.

    Args:
        step: the traced step.
        counts: its numbers of parameters, x leaves and state leaves.
        hoist: whether to compute products of x before the loop.
        known: whether the loop can compute a node.

    Attributes:
        rows: the traced batch size.
        state: the leaves of the old state.
        held: the indices of leaves that the step only reads.
        free: the traced value of their free sizes; 0 if there are none.
        ends: output and new state.
        early: nodes computed before the loop, from x and parameters.
        inside: nodes computed in the loop, in order.
        inputs: the inputs of the loop at every step, in the order of `input`.
        constants: values that depend on parameters alone, in the order of `constant`: tensors, or parts of them.

    Raises:
        Untraceable: without `hoist`, an operation that the loop cannot compute.
    """

    def __init__(
        self, step: StepGraph, counts: tuple[int, int, int], hoist: bool, known: Callable[[fx.Node], bool]
    ) -> None:
        self.graph, self.rows, self.held, self.free = step.module.graph, step.rows, frozenset(step.held), step.free
        nodes = list(self.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        kinds = [kind for kind, n in zip(("parameters", "x", "state"), counts, strict=True) for _ in range(n)]
        self._needs = {node: frozenset([kind]) for kind, node in zip(kinds, placeholders, strict=True)}
        for node in nodes:
            if node not in self._needs:
                self._needs[node] = frozenset().union(*(self._needs[a] for a in node.all_input_nodes))
        self._given = placeholders[: counts[0] + counts[1]]
        self.state = placeholders[counts[0] + counts[1] :]
        (output,) = [n for n in nodes if n.op == "output"]
        self.ends: tuple[Any, ...] = tuple(output.args[0])
        self.early = self._found_early(nodes, hoist, known)
        wanted = set(output.all_input_nodes)
        for node in reversed(nodes):
            if node in wanted and node not in self.early:
                wanted.update(node.all_input_nodes)
        self.inside = [
            n
            for n in nodes
            if n in wanted and n.op == "call_function" and n not in self.early and not self.is_constant(n)
        ]
        self.inputs: list[fx.Node] = []
        self.constants: list[tuple[fx.Node, Place | None]] = []

    def is_constant(self, node: fx.Node) -> bool:
        """Whether the node depends on parameters alone."""
        return not self._needs[node] & {"x", "state"}

    def _found_early(self, nodes: list[fx.Node], hoist: bool, known: Callable[[fx.Node], bool]) -> set[fx.Node]:
        """The nodes computed for all steps at once: products of x, their arguments, and unsupported operations."""
        free = [n for n in nodes if n.op == "call_function" and self._needs[n] - {"parameters"} == {"x"}]
        early: set[fx.Node] = set()
        for node in reversed(free):
            product = hoist and operation_name(node.target) in PRODUCTS
            if product or not known(node) or any(user in early for user in node.users):
                early.add(node)
        if early and not hoist:
            node = early.pop()
            name, line = operation_name(node.target), node.meta.get("line", "")
            raise Untraceable(f"its step uses {name}, which the compiled loop does not hold{line}")
        for node in free:
            # the loop reads rows, so nodes with the batch elsewhere stay outside until it is first again
            moved = any(arg in early and set(self._batches(arg)) - {(0, 1)} for arg in node.all_input_nodes)
            if moved or (operation_name(node.target) == "getitem" and node.args[0] in early):
                early.add(node)
        return early

    def _batches(self, node: fx.Node) -> list[tuple[int, int]]:
        value = node.meta.get("val")
        tensors = value if isinstance(value, (tuple, list)) else [value]
        places = [self.batch(t.shape) for t in tensors if isinstance(t, Tensor)]
        return [place for place in places if place]

    def batch(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, int] | None:
        """The batch dimension, and the number of row elements folded into it (1 for none).

        Raises:
            Untraceable: two dimensions hold the batch.
        """
        found = [(at, n // self.rows) for at, n in enumerate(shape) if n and n % self.rows == 0]
        if len(found) > 1:
            told = ", ".join(size_told(n, self.rows) for n in shape)
            raise Untraceable(f"its step sets rows of the batch against one another ({told})")
        return found[0] if found else None

    def row(self, shape: torch.Size | tuple[int, ...]) -> Shape:
        """The row shape of a tensor with the batch in any dimension."""
        place = self.batch(shape)
        if place is None:
            return tuple(shape)
        at, folded = place
        return (*shape[:at], *((folded,) if folded > 1 else ()), *shape[at + 1 :])

    def input(self, node: fx.Node) -> tuple[int, fx.Node | None]:
        """The index of a node among the inputs, and its bias if it is a product; the loop adds it at no cost."""
        if node not in self.inputs:
            self.inputs.append(node)
        return self.inputs.index(node), self._bias(node)

    def _bias(self, node: fx.Node) -> fx.Node | None:
        if node.op != "call_function" or operation_name(node.target) != "addmm" or node.kwargs:
            return None
        bias: Any = node.args[0]
        plain = self.is_constant(bias) and bias.meta["val"].dim() == 1
        return bias if plain and not any(user in self.early for user in node.users) else None

    def factors(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The factors of an input that is a product of x and a constant matrix, which the loop computes itself."""
        if node.op != "call_function" or any(user in self.early for user in node.users):
            return None
        left: Any
        right: Any
        if operation_name(node.target) == "mm":
            left, right = node.args
        elif self._bias(node) is not None:
            _, left, right = node.args
        else:
            return None
        return (left, right) if self.is_constant(right) and self._batches(left) == [(0, 1)] else None

    def constant(self, node: fx.Node, place: Place | None = None) -> int:
        """The index of a node, or of its part at `place`, among the constants."""
        if (node, place) not in self.constants:
            self.constants.append((node, place))
        return self.constants.index((node, place))

    @property
    def constant_shapes(self) -> tuple[Shape, ...]:
        """The shape of each constant."""
        return tuple(tuple(n.meta["val"].shape) if place is None else place.shape for n, place in self.constants)

    def before(self) -> fx.GraphModule:
        """The part that PyTorch runs: everything that inputs and constants need."""
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in self._given}
        rows = graph.placeholder("rows")
        inputs = [(self.factors(node) or (node, None))[0] for node in self.inputs]
        wanted = {*inputs, *(node for node, _ in self.constants)}
        for node in reversed(self.graph.nodes):
            if node in wanted:
                wanted.update(node.all_input_nodes)

        def argument(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return copies[value]
            if isinstance(value, (list, tuple)):
                return type(value)(argument(v) for v in value)
            if isinstance(value, int) and value and value % self.rows == 0:
                many = value // self.rows
                return rows if many == 1 else graph.call_function(operator.mul, (rows, many))
            return value

        for node in self.graph.nodes:
            if node not in wanted or node in copies:
                continue
            if node.op == "get_attr":
                copies[node] = graph.get_attr(node.target)
                continue
            target, arguments = node.target, node.args
            bias: Any = None
            if target is torch.ops.aten.addmm.default and not node.kwargs:
                added = node in self.inputs and self._bias(node) is not None  # added in the loop
                bias = None if added else arguments[0]
                target, arguments = products.mm, arguments[1:]
            elif target is torch.ops.aten.mm.default:
                target = products.mm
            elif target is torch.ops.aten.t.default:
                target = torch.t  # equal, with a faster call
            keywords = {k: argument(v) for k, v in node.kwargs.items() if k not in ("device", "pin_memory")}
            copies[node] = graph.call_function(target, tuple(map(argument, arguments)), keywords)
            if bias is not None:
                copies[node] = graph.call_function(torch.add, (copies[node], argument(bias)))
        constants = [
            copies[n] if p is None else graph.call_function(_part, (copies[n], p.shape, p.strides, p.offset))
            for n, p in self.constants
        ]
        graph.output([*(copies[n] for n in inputs), *constants])
        return graph_module(self.graph.owning_module or {}, graph)


def _part(value: Tensor, shape: Shape, strides: tuple[int, ...], offset: int) -> Tensor:
    value = value.contiguous()
    if min(strides, default=0) < 0:  # PyTorch has no negative strides
        places = torch.from_numpy(Place(shape, strides, offset).indices())
        return value.flatten()[places].view(shape)
    return value.as_strided(shape, strides, value.storage_offset() + offset)  # offset in the storage
