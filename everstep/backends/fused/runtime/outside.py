"""The part of a step that PyTorch computes over all steps before the loop: its inputs and constants."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from everstep.tracing.graph_modules import graph_module


class Outside:
    """`split.Split.before`, without operations that the loop does itself.

    Args:
        before: maps parameters, x leaves and the number of steps to the inputs, then the constants.
        inputs: number of inputs.
        matrices: constants that the loop only multiplies by.

    Attributes:
        transposed: the matrices whose transposition in `before` is skipped: packing accepts any strides, and each
            transposition would cost a call here and another for its gradient.
        direct: whether everything is passed on unchanged.
        reads: which parameters and x leaves are read.
        bytes: bytes of further tensors that it owns.
    """

    def __init__(self, before: fx.GraphModule, inputs: int, matrices: Collection[int]):
        graph = fx.Graph()
        values: list[Any] = list(graph.graph_copy(before.graph, {}))  # type: ignore[arg-type]
        self.transposed: set[int] = set()
        for number in matrices:
            node = values[inputs + number]
            if node.op == "call_function" and node.target is torch.t:
                values[inputs + number] = node.args[0]
                self.transposed.add(number)
        graph.output(values)
        graph.eliminate_dead_code()
        self._module = graph_module(before, graph)
        self.bytes = sum(tensor.nbytes for tensor in self._module.buffers())
        given = [node for node in graph.nodes if node.op == "placeholder"]
        self.direct = all(v in given for v in values)
        self._picks = [given.index(v) for v in values] if self.direct else None
        self.reads = [k for k, node in enumerate(given[:-1]) if node.users]

    def __call__(self, parameters: Sequence[Tensor], xs: Sequence[Tensor], steps: int) -> list[Tensor]:
        """The inputs, (steps, …) each, then the constants."""
        if self._picks is not None:
            given = [*parameters, *xs]
            return [given[k] for k in self._picks]
        found: list[Tensor] = self._module.forward(*parameters, *xs, steps)
        return found
