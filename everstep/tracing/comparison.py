"""Comparison of two graphs of one step, traced with different numbers of rows."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from torch import fx

from everstep.tracing.operations import operation_name


def differing(first: fx.GraphModule, second: fx.GraphModule, rows: int, others: int) -> fx.Node | None:
    """The first node in which the graphs of `rows` and of `others` rows differ in more than sizes, or None."""
    places = [{node: place for place, node in enumerate(module.graph.nodes)} for module in (first, second)]

    def same(a: Any, b: Any, size: bool = False) -> bool:
        if isinstance(a, fx.Node):
            return isinstance(b, fx.Node) and places[0][a] == places[1][b]
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(same(p, q, True) for p, q in zip(a, b, strict=True))
        if size and type(a) is type(b) is int and a % rows == 0:
            return a * others == b * rows
        return bool(a == b or a != a)

    def alike(a: fx.Node, b: fx.Node) -> bool:
        if a.op == b.op == "get_attr":
            left, right = getattr(first, str(a.target)), getattr(second, str(b.target))
            return left is right or (left.shape == right.shape and bool(((left == right) | (left != left)).all()))
        sizes = operation_name(a.target) == "slice"
        return (
            (a.op, a.target, len(a.args), a.kwargs.keys()) == (b.op, b.target, len(b.args), b.kwargs.keys())
            and all(same(p, q, sizes) for p, q in zip(a.args, b.args, strict=True))
            and all(same(value, b.kwargs[key]) for key, value in a.kwargs.items())
        )

    pairs = zip_longest(*places)
    return next((a or b for a, b in pairs if a is None or b is None or not alike(a, b)), None)
