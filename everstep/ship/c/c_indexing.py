"""Write lookups in C++: embeddings, indices, gathering, scattering, sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from everstep.ship.c.c_values import Number, Value
from everstep.ship.c.c_writer import CWriter, axis
from everstep.ship.sizes import NotExported

Handler = Callable[..., Any]
_JOINED = {"sum": "{0} + {1}", "prod": "{0} * {1}", "amax": "most({0}, {1})", "amin": "least({0}, {1})"}


def _at(index: str, size: Number) -> str:
    """A place in a dimension; negative ones count from its end."""
    return f"within({index}, {size})"


def _embedding(w: CWriter, node: fx.Node, weight: fx.Node, indices: fx.Node, *_: Any, **__: Any) -> Value:
    return _index(w, node, weight, [indices])


def _index(w: CWriter, node: fx.Node, x: fx.Node, indices: Sequence[Any]) -> Value:
    value = w.value(x)
    where = [place for place, index in enumerate(indices) if index is not None]
    given = [w.value(indices[place]) for place in where]
    if any(one.kind == "bool" for one in given) or where != list(range(where[0], where[0] + len(where))):
        raise NotExported("it indexes with a mask or with dimensions apart, which C++ has no loop for here")
    out, first = w.new(w.kind(node), w.sizes(node)), where[0]
    many = len(out.sizes) - (len(value.sizes) - len(where))
    spread = [one.spread(out.sizes[first : first + many]) for one in given]

    def body(at: list[str]) -> str:
        middle = at[first : first + many]
        places = [_at(one.one(middle), value.sizes[d]) for one, d in zip(spread, where, strict=True)]
        return f"{out.one(at)} = {value.one([*at[:first], *places, *at[first + many :]])};"

    w.loops(out.sizes, body)
    return out


def _index_select(w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Value:
    return _index(w, node, x, [*[None] * axis(dim, w.value(x)), index])


def _gather(w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, **_: Any) -> Value:
    value, places, out = w.value(x), w.value(index), w.new(w.kind(node), w.sizes(node))
    d = axis(dim, value)

    def body(at: list[str]) -> str:
        return f"{out.one(at)} = {value.one([*at[:d], _at(places.one(at), value.sizes[d]), *at[d + 1 :]])};"

    w.loops(out.sizes, body)
    return out


def _scattered(w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: Any, formula: str) -> Value:
    places, given = w.value(index), w.cast(source, node.meta["val"].dtype).spread(w.sizes(index))
    out = w.copied(w.cast(x, node.meta["val"].dtype))
    d = axis(dim, out)

    def body(at: list[str]) -> str:
        into = out.one([*at[:d], _at(places.one(at), out.sizes[d]), *at[d + 1 :]])
        return f"{into} = {formula.format(into, given.one(at))};"

    w.loops(places.sizes, body)
    return out


def _scatter(
    w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: Any, reduce: str | None = None
) -> Value:
    formulas = {None: "{1}", "add": _JOINED["sum"], "multiply": _JOINED["prod"]}
    return _scattered(w, node, x, dim, index, source, formulas[reduce])


def _scatter_add(w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> Value:
    return _scattered(w, node, x, dim, index, source, _JOINED["sum"])


def _scatter_reduce(
    w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: fx.Node, reduce: str, include_self: Any = 1
) -> Value:
    if reduce not in _JOINED or not include_self:
        raise NotExported(f"it scatters with reduce={reduce!r}, include_self={bool(include_self)}")
    return _scattered(w, node, x, dim, index, source, _JOINED[reduce])


def _sort(w: CWriter, node: fx.Node, x: fx.Node, *at: Any, **how: Any) -> list[Value]:
    """Sort, equal numbers in the order of their places."""
    dim, descending = [*at, *([how.get("dim", -1), how.get("descending", False)][len(at) :])]
    value = w.copied(w.value(x))
    places, d = w.new("int64_t", value.sizes), axis(dim, value)
    others = [1 if n == d else size for n, size in enumerate(value.sizes)]

    def body(to: list[str]) -> str:
        offset = f"&{value.one(to)}, &{places.one(to)}"
        return f"sorted({offset}, {value.sizes[d]}, {value.strides[d]}, {'true' if descending else 'false'});"

    w.loops(others, body)
    return [value, places]


INDEXING: dict[str, Handler] = {
    "embedding": _embedding,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "scatter": _scatter,
    "scatter_add": _scatter_add,
    "scatter_reduce": _scatter_reduce,
    "sort": _sort,
}
"""What writes each lookup, by its PyTorch name."""
