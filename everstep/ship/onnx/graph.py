"""Build ONNX graphs: nodes with unique names, shared constants, and subgraphs for loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from everstep.ship.sizes import Size

OPSET = 18
"""The ONNX operator set: the first version with all operators that the export needs."""
IR_VERSION = 10

TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


class Names:
    """Unique names of values in a file."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def fresh(self, wish: str) -> str:
        """The name `wish`, or with a number appended if it is taken."""
        count = self._taken.get(wish, 0)
        self._taken[wish] = count + 1
        return self.fresh(f"{wish}_{count}") if count else wish


class Graph:
    """An ONNX graph. A subgraph in a loop shares the names and constants of the `root` and can read its values.

    Attributes:
        root: the graph of the file.
        nodes: the nodes so far, in order.
    """

    def __init__(self, root: Graph | None = None):
        self.root: Graph = self if root is None else root.root
        self.nodes: list[Any] = []
        if root is None:
            self._names = Names()
            self.initializers: list[Any] = []
            self._known: dict[tuple[Any, ...], str] = {}
            self.sizes: dict[str, str] = {}

    def fresh(self, wish: str) -> str:
        """A new unique name."""
        return self.root._names.fresh(wish)

    def add(self, operation: str, *inputs: str, outputs: int = 1, wish: str = "", **attributes: Any) -> Any:
        """Add a node. Returns the name of its output, or the list of names if it has several."""
        names = [self.fresh(wish or operation.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operation, list(inputs), names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def give(self, name: str, value: str) -> None:
        """Make `value` the output called `name`."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def constant(self, value: NDArray[Any] | Tensor, wish: str = "constant") -> str:
        """The name of a constant. Equal constants of up to 64 numbers are stored once."""
        array = value.detach().contiguous().cpu().numpy() if isinstance(value, Tensor) else value
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else (id(value),)
        root = self.root
        if key not in root._known:
            name = root._known[key] = self.fresh(wish)
            root.initializers.append((name, array, value))  # keeps the value alive, so that its id stays unique
        return root._known[key]

    def ints(self, values: Sequence[int | Size | str]) -> str:
        """The name of a 1-D int64 tensor of these numbers; a string is the name of a tensor of one number."""
        if all(isinstance(value, int) for value in values):
            return self.constant(np.array(values, np.int64))
        parts = [v if isinstance(v, str) else self.size(v) for v in values]
        return parts[0] if len(parts) == 1 else str(self.add("Concat", *parts, axis=0, wish="sizes"))

    def size(self, value: int | Size) -> str:
        """The name of a size as an int64 tensor (1,)."""
        if isinstance(value, int):
            return self.constant(np.array([value], np.int64))
        key = str(value)
        root = self.root
        if key not in root.sizes:
            found = root.sizes[value.of[0]]
            for name in value.of[1:]:
                found = root.add("Mul", found, root.sizes[name], wish="size")
            if value.times != 1:
                found = root.add("Mul", found, root.ints([value.times]), wish="size")
            root.sizes[key] = root.add("Add", found, root.ints([value.plus]), wish="size") if value.plus else found
        return root.sizes[key]

    def finished(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The graph as an `onnx.GraphProto`; the root includes the constants."""
        own = self.initializers if self.root is self else []
        constants = [numpy_helper.from_array(array, constant) for constant, array, _ in own]
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), constants)


def info(name: str, dtype: torch.dtype, shape: Sequence[int | str] | None) -> Any:
    """The type and shape of an input or output, as an `onnx.ValueInfoProto`."""
    return helper.make_tensor_value_info(name, TYPES[dtype], shape)


def model_of(graph: Any, told: dict[str, str]) -> Any:
    """An `onnx.ModelProto` with the metadata `told`, checked by ONNX's checker."""
    model = helper.make_model(
        graph, producer_name="everstep", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    helper.set_model_props(model, told)
    onnx.checker.check_model(model)
    return model
