"""Gradients of a memory that are outer products at every step: the vectors are saved and multiplied after all steps."""

from __future__ import annotations

from dataclasses import dataclass

from everstep.backends.fused.row_graph import Builder, Place, View, dense


@dataclass(frozen=True)
class OuterProduct:
    """left ⊗ right, which goes to every (i, j) of a row at i · apart + j.

    Attributes:
        left, right: vectors.
        apart: distance of the rows of the matrix.
    """

    left: View
    right: View
    apart: int


def outer_products(build: Builder, view: View) -> tuple[list[OuterProduct], View | None]:
    """A gradient as a sum of products of two vectors, and the rest; None: there is no rest."""
    terms, found, rest = [view], [], None
    while terms:
        term = terms.pop()
        if term.node.op == "add" and term.whole and all(arg.whole for arg in term.node.args):
            terms.extend(term.node.args)
            continue
        one = _outer(term)
        if one is not None:
            found.append(one)
        else:
            rest = term if rest is None else build.apply("add", rest, term)
    return found, rest


def _outer(view: View) -> OuterProduct | None:
    node, place = view.node, Place(view.node.shape, dense(view.node.shape))
    if not view.whole:
        return None
    if node.op == "scatter" and len(node.parts) == 1 and node.args[0].whole:
        node, place = node.args[0].node, node.parts[0]
    if node.op != "mul":
        return None
    kept = [d for d, n in enumerate(node.shape) if n != 1]
    place = place.reduced()
    if len(kept) != 2 or len(place.shape) != 2:
        return None
    first, second = (_vector(arg, kept) for arg in node.args)
    if first is None or second is None or first[0] == second[0]:
        return None
    vectors = dict((first, second))
    for row, column in ((0, 1), (1, 0)):
        if place.strides[column] == 1 and place.offset == 0:
            return OuterProduct(vectors[row], vectors[column], place.strides[row])
    return None


def _vector(view: View, kept: list[int]) -> tuple[int, View] | None:
    """Along which of two dimensions it runs, and its numbers along that; None: along both or none."""
    axes = [axis for axis, d in enumerate(kept) if view.place.strides[d]]
    if len(axes) != 1 or view.node.op == "literal":
        return None
    d = kept[axes[0]]
    place = Place((view.shape[d],), (view.place.strides[d],), view.place.offset)
    return axes[0], View(view.node, place)
