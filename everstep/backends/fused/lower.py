"""Translation of a traced step to the row graph; refuses operations that mix rows, in the loop or before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from everstep.backends.fused.lowering import Lowered, Lowering, known
from everstep.backends.fused.row_graph import View
from everstep.backends.fused.split import Split
from everstep.tracing.operations import kind_of, operation_name
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import StepGraph


def lower(step: StepGraph, counts: tuple[int, int, int], hoist: bool = True) -> Lowered:
    """Split and translate a traced step; `counts` are its numbers of parameters, x leaves and state leaves.

    Without `hoist`, products of x are computed in the loop too, as a single step needs.

    Raises:
        Untraceable: an operation, a shape or a dtype that the compiled loop does not support.
    """
    split = Split(step, counts, hoist, known)
    _Before(split, step.dtype).check()
    return Lowering(split, step.dtype).run()


class _Before(Lowering):
    """Checks the computation before the loop, where steps are rows too, for operations that mix rows."""

    def check(self) -> None:
        """Check each node that reads rows, in order."""
        for node in self.split.graph.nodes:
            before = node in self.split.early or self.split.is_constant(node)
            if before and node.op == "call_function" and any(map(self._reads_rows, node.all_input_nodes)):
                self.rowwise[node] = self._inside(node)

    def _reads_rows(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        several = value if isinstance(value, tuple) else (value,)
        return any(isinstance(v, Tensor) and self.split.batch(v.shape) for v in several)

    def value(self, node: Any) -> Any:
        """As in the loop, but values from outside are represented by their shapes only."""
        if not isinstance(node, fx.Node):
            return float(node)
        if node not in self.rowwise:
            self.rowwise[node] = self._like(node)
        return self.rowwise[node]

    def _like(self, node: fx.Node) -> Any:
        number, value = len(self.rowwise), node.meta["val"]
        several = value if isinstance(value, tuple) else (value,)
        kinds = ["x" if self.split.batch(v.shape) else "const" for v in several]
        views = [
            self.build.input(kind, 1000 * number + k, self.split.row(v.shape))
            for k, (kind, v) in enumerate(zip(kinds, several, strict=True))
        ]
        return tuple(views) if isinstance(value, tuple) else views[0]

    def _call(self, node: fx.Node) -> Any:
        if known(node):
            return super()._call(node)
        places = {self._from_end(arg) for arg in node.all_input_nodes} - {None}
        if kind_of(node.target) != "pointwise" or places != {self._from_end(node)}:
            raise Untraceable(f"its step sets rows of the batch against one another by {operation_name(node.target)}")
        return self._like(node)

    def _check_dtype(self, node: fx.Node, what: str = "computes", logic: bool = True) -> None:
        """Accept any dtype, since PyTorch computes these values."""

    def _matrix(self, view: View) -> int:
        return 0
