"""The interface through which translations of PyTorch's operations read their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import fx

from everstep.backends.fused.row_graph import Builder, Place, Shape, View
from everstep.tracing.operations import operation_name


class Reader(Protocol):
    """Reads the arguments of an operation."""

    build: Builder

    def view(self, node: Any) -> View:
        """A tensor argument as a view of its row; a number as a literal."""

    def operand(self, node: Any) -> View | float:
        """A tensor argument as a view of its row; a number unchanged."""

    def shape(self, node: Any) -> Shape:
        """The row shape of a tensor."""

    def dims(self, node: Any, tensor: Any, given: Sequence[int]) -> list[int]:
        """Dimensions of a tensor as dimensions of a row; the batch dimension is refused."""


_FILLS = {"ones_like": 1.0, "zeros_like": 0.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}
_FILLS |= dict.fromkeys(("empty_like", "new_empty", "empty"), 0.0)
_FILLED = {"full_like": 1, "new_full": 2, "full": 1, "scalar_tensor": 0}


def filled(node: Any) -> float | None:
    """The constant that a tensor is filled with, or None."""
    name = operation_name(node.target)
    return _FILLS[name] if name in _FILLS else float(node.args[_FILLED[name]]) if name in _FILLED else None


def without(view: View, dims: Sequence[int]) -> View:
    """The view without the dimensions `dims`, of which index 0 is read."""
    kept = [d for d in range(len(view.shape)) if d not in dims]
    place = view.place
    return View(
        view.node, Place(tuple(place.shape[d] for d in kept), tuple(place.strides[d] for d in kept), place.offset)
    )


def scaled(build: Builder, view: View, scale: Any) -> View:
    """The view times `scale`."""
    return build.apply("mul", view, float(scale)) if scale != 1 else view


def argument(node: Any, place: int, name: str, default: Any = None) -> Any:
    """A positional or keyword argument of a node."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


Handler = Callable[[Any, fx.Node], Any]
"""Translates a PyTorch node, given a `Reader`, to one or several views of nodes of the row graph."""
