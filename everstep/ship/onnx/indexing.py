"""Write lookups as ONNX nodes: embeddings, indices, gathering, scattering, windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from everstep.ship.onnx.node_writer import Writer, axis, of_windows
from everstep.ship.sizes import NotExported, Size

Handler = Callable[..., Any]
_REDUCTIONS = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}


def _embedding(w: Writer, node: fx.Node, weight: fx.Node, indices: fx.Node, *_: Any, **__: Any) -> str:
    return str(w.add("Gather", w.name(weight), w.name(indices), axis=0))


def _index(w: Writer, node: fx.Node, x: fx.Node, indices: Sequence[Any]) -> str:
    given = [(place, index) for place, index in enumerate(indices) if index is not None]
    if len(given) == 1 and w.dtype(given[0][1]) != torch.bool:
        return str(w.add("Gather", w.name(x), w.name(given[0][1]), axis=given[0][0]))
    if [place for place, _ in given] != list(range(len(given))) or any(w.dtype(one) == torch.bool for _, one in given):
        raise NotExported("it indexes with a mask, or with several indices that do not start at the first dimension")
    together = w.ints(w.shape(node)[: w.rank(node) - w.rank(x) + len(given)])
    whole = [w.add("Expand", w.name(index), together) for _, index in given]
    places = [w.add("Unsqueeze", name, w.ints([-1])) for name in whole]
    return str(w.add("GatherND", w.name(x), w.add("Concat", *places, axis=-1)))


def _index_select(w: Writer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> str:
    if dim == 0 and of_windows(x):  # the numbers of each window alone, instead of all windows
        line, _, size, _ = w.source.arguments(x)[0]
        starts = w.add("Unsqueeze", w.name(index), w.ints([-1]))
        return str(w.add("Gather", w.name(line), w.add("Add", starts, _places(w, size)), axis=0))
    return str(w.add("Gather", w.name(x), w.name(index), axis=axis(dim, w.rank(x))))


def _gather(w: Writer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, **_: Any) -> str:
    return str(w.add("GatherElements", w.name(x), w.name(index), axis=axis(dim, w.rank(x))))


def _scatter(
    w: Writer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: Any, reduce: str | None = None
) -> str:
    return _scattered(w, node, x, dim, index, source, {None: "none", "add": "add", "multiply": "mul"}[reduce])


def _scattered(w: Writer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: Any, reduction: str) -> str:
    sizes, dtype = w.shape(index), w.dtype(node)
    if isinstance(source, fx.Node) and w.shape(source) != sizes:
        raise NotExported("it scatters some of the numbers of a tensor; slice it before")
    kind = torch.int32 if dtype == torch.bool else dtype
    given = w.like(source, kind)
    given = given if isinstance(source, fx.Node) else w.add("Expand", given, w.ints(sizes))
    how: dict[str, Any] = {"axis": axis(dim, w.rank(x)), "reduction": reduction}
    found = w.add("ScatterElements", w.like(x, kind), w.name(index), given, **how)
    return w.cast(found, dtype) if dtype != kind else str(found)


def _scatter_add(w: Writer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> str:
    return _scattered(w, node, x, dim, index, source, "add")


def _scatter_reduce(
    w: Writer, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, source: fx.Node, reduce: str, include_self: Any = 1
) -> str:
    if reduce not in _REDUCTIONS or not include_self:
        raise NotExported(f"it scatters with reduce={reduce!r}, include_self={bool(include_self)}")
    return _scattered(w, node, x, dim, index, source, _REDUCTIONS[reduce])


def _places(w: Writer, many: int | Size) -> str:
    return str(w.add("Range", *(w.like(number, torch.int64) for number in (0, many, 1))))


def _unfold(w: Writer, node: fx.Node, x: fx.Node, dim: int, size: int, step: int) -> str:
    if of_windows(node):
        return ""  # its users read the line itself
    where = axis(dim, w.rank(x))
    if step != 1 or where != w.rank(x) - 1:
        raise NotExported("it takes windows more than one step apart, or of another dimension than the last")
    starts = w.add("Unsqueeze", _places(w, w.shape(node)[where]), w.ints([-1]))
    return str(w.add("Gather", w.name(x), w.add("Add", starts, _places(w, size)), axis=where))


INDEXING: dict[str, Handler] = {
    "embedding": _embedding,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "scatter": _scatter,
    "scatter_add": _scatter_add,
    "scatter_reduce": _scatter_reduce,
    "unfold": _unfold,
}
"""The handlers of lookups by PyTorch name."""
