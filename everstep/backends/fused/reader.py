"""What a translation of one of PyTorch's operations into the engine's graph reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import fx

from everstep.backends.fused.row_graph import Builder, Place, Shape, View
from everstep.tracing.operations import operation_name


class Reader(Protocol):
    """What a translation reads its arguments by."""

    build: Builder

    def view(self, node: Any) -> View:
        """A row of a tensor, or a number."""

    def operand(self, node: Any) -> View | float:
        """The same, a number as it is."""

    def shape(self, node: Any) -> Shape:
        """The shape of a row."""

    def dims(self, node: Any, tensor: Any, given: Sequence[int]) -> list[int]:
        """Dimensions of a tensor as those of a row; a node that wants the batch's own is refused."""


_FILLS = {"ones_like": 1.0, "zeros_like": 0.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}
_FILLS |= dict.fromkeys(("empty_like", "new_empty", "empty"), 0.0)
_FILLED = {"full_like": 1, "new_full": 2, "full": 1, "scalar_tensor": 0}


def filled(node: Any) -> float | None:
    """The number that a tensor is filled with, if it is."""
    name = operation_name(node.target)
    return _FILLS[name] if name in _FILLS else float(node.args[_FILLED[name]]) if name in _FILLED else None


def without(view: View, dims: Sequence[int]) -> View:
    """The same without dimensions, of which the first place is read."""
    kept = [d for d in range(len(view.shape)) if d not in dims]
    place = view.place
    return View(
        view.node, Place(tuple(place.shape[d] for d in kept), tuple(place.strides[d] for d in kept), place.offset)
    )


def scaled(build: Builder, view: View, scale: Any) -> View:
    """A multiple of it."""
    return build.apply("mul", view, float(scale)) if scale != 1 else view


def argument(node: Any, place: int, name: str, default: Any = None) -> Any:
    """An argument that may be named."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


Handler = Callable[[Any, fx.Node], Any]
"""From a `Reader` and a node of PyTorch's to a view, or views, of nodes of the graph."""
