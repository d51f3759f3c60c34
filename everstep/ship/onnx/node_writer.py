"""Write recorded operations as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import fx

from everstep.ship.onnx.graph import TYPES, Graph
from everstep.ship.sizes import NotExported, Size, check_arguments
from everstep.tracing.operations import operation_name


class Source(Protocol):
    """A recorded graph: `Recorded` or `TracedStep`."""

    nodes: list[fx.Node]
    known: dict[fx.Node, Any]
    names: dict[fx.Node, str]
    ends: list[fx.Node]

    def shape(self, node: fx.Node) -> list[int | Size]:
        """The sizes of the output of a node."""

    def arguments(self, node: fx.Node) -> tuple[Any, dict[str, Any]]:
        """The positional and keyword arguments of a node."""


class Writer:
    """Writes the operations of one recorded graph into an ONNX graph.

    Args:
        graph: the ONNX graph to extend.
        source: the recorded graph.
        handlers: the function that writes each operation, by its PyTorch name.
        rows: for a traced step, the size in the file that replaces its rows.

    Attributes:
        values: for each node that is not constant, the name of its output, or the names of its outputs.
    """

    def __init__(self, graph: Graph, source: Source, handlers: dict[str, Any], rows: Size | None = None):
        self.graph, self.source, self.handlers, self._rows = graph, source, handlers, rows
        self.values: dict[fx.Node, Any] = {}

    def write(self, nodes: Sequence[fx.Node] | None = None) -> None:
        """Write these nodes, or all nodes of the source.

        Raises:
            NotExported: an operation has no handler.
        """
        for node in self.source.nodes if nodes is None else nodes:
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
        fixed = all(one in known for one in node.all_input_nodes) and not sized((args, kwargs))
        if fixed and name != "recurrence" and not of_windows(node):
            given = fx.node.map_arg((node.args, dict(node.kwargs)), lambda one: known[one])
            with torch.no_grad():
                known[node] = node.target(*given[0], **given[1])  # type: ignore[operator]
            return
        handler = self.handlers.get(name)
        if handler is None:
            raise NotExported(f"it uses {name}, which has no counterpart here{node.meta.get('line', '')}")
        check_arguments(handler, name, self, node, *args, **kwargs)
        self.values[node] = handler(self, node, *args, **kwargs)

    def name(self, node: fx.Node) -> str:
        """The name of the value of a node."""
        if node in self.source.known:
            value = self.source.known[node]
            return self.graph.constant(value, self.source.names.get(node, "constant"))
        return str(self.values[node])

    def dtype(self, value: Any) -> torch.dtype:
        """The dtype of the output of a node."""
        found: torch.dtype = value.meta["val"].dtype
        return found

    def shape(self, node: fx.Node) -> list[int | Size]:
        """The sizes of the output of a node, by the dynamic sizes of the file."""
        return [self.sized(n) for n in self.source.shape(node)]

    def rank(self, node: fx.Node) -> int:
        """The number of dimensions of the output of a node."""
        return len(node.meta["val"].shape)

    def sized(self, value: Any) -> Any:
        """A size with the rows of a step replaced by those of the file; other values unchanged."""
        if isinstance(value, Size) and self._rows is not None:
            return Size(value.times * self._rows.times, self._rows.of, self._rows.plus)
        return value

    def ints(self, values: Sequence[Any]) -> str:
        """The name of a 1-D int64 tensor of sizes."""
        return self.graph.ints([self.sized(value) for value in values])

    def like(self, value: Any, dtype: torch.dtype) -> str:
        """The name of a node's value, a size or a number, in the given dtype."""
        if isinstance(value, fx.Node):
            name = self.name(value)
            return name if self.dtype(value) == dtype else self.cast(name, dtype)
        if isinstance(value, Size):
            scalar = self.graph.add("Squeeze", self.graph.size(self.sized(value)), wish="size")
            return str(scalar) if dtype == torch.int64 else self.cast(scalar, dtype)
        return self.graph.constant(torch.tensor(value, dtype=dtype))

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """The name of the value cast to `dtype`."""
        return str(self.graph.add("Cast", name, to=TYPES[dtype]))

    def add(self, operation: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, see `Graph.add`."""
        return self.graph.add(operation, *inputs, outputs=outputs, **attributes)

    def number(self, value: float, dtype: torch.dtype) -> str:
        """The name of a 0-D constant."""
        return self.graph.constant(torch.tensor(value, dtype=dtype))


def sized(nest: Any) -> bool:
    """Whether the arguments contain a dynamic size."""
    if isinstance(nest, Size):
        return True
    if isinstance(nest, dict):
        nest = list(nest.values())
    return isinstance(nest, list | tuple) and any(map(sized, nest))


def axis(dim: int, rank: int) -> int:
    """The non-negative index of a dimension."""
    return dim % max(rank, 1)


def of_windows(node: fx.Node) -> bool:
    """Whether a value is all windows, one number apart, of one line of numbers, of which only some are looked up.

    Such are many times the size of the line, which is read in their place.
    """
    if operation_name(node.target) != "unfold" or len(node.meta["val"].shape) != 2 or node.args[3] != 1:
        return False
    return all(operation_name(user.target) == "index_select" and user.args[1] == 0 for user in node.users)
