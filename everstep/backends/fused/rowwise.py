"""PyTorch's operations on whole rows as nodes of the row graph; for products and views see `lowering.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from everstep.backends.fused.reader import Handler, Reader, argument, without
from everstep.backends.fused.row_graph import Builder, Place, View, broadcast, dense


def _dims(self: Reader, node: Any, given: Any) -> list[int]:
    """The reduced dimensions of the row; None means all, which includes the batch and is refused."""
    source, given = node.args[0], given if isinstance(given, (list, tuple)) else [given]
    if not given or None in given:
        given = range(source.meta["val"].dim())
    return self.dims(node, source, given)


def _part(view: View, dims: Sequence[int]) -> float:
    """1 / the number of elements in `dims`; NaN for none."""
    count = math.prod(view.shape[d] for d in dims)
    return 1 / count if count else math.nan


def _sum(self: Reader, node: Any, mean: bool = False) -> View:
    view = self.view(node.args[0])
    dims = _dims(self, node, argument(node, 1, "dim"))
    total = self.build.total(view, dims)
    if mean:
        total = self.build.apply("mul", total, _part(view, dims))
    return total if argument(node, 2, "keepdim") else without(total, dims)


def _extreme(self: Reader, node: Any, least: bool = False) -> View:
    view = self.view(node.args[0])
    if least:
        view = self.build.apply("neg", view)
    dims = _dims(self, node, argument(node, 1, "dim"))
    total = self.build.total(view, dims, "amax")
    result = total if argument(node, 2, "keepdim") else without(total, dims)
    return self.build.apply("neg", result) if least else result


def _any(self: Reader, node: Any, every: bool = False) -> View:
    view = self.build.apply("ne", self.view(node.args[0]), 0.0)
    dims = _dims(self, node, argument(node, 1, "dim"))
    if not all(view.shape[d] for d in dims):
        return self.build.literal(float(every), self.shape(node))
    if every:
        view = self.build.apply("not", view)
    total = self.build.total(view, dims, "amax")
    result = total if argument(node, 2, "keepdim") else without(total, dims)
    return self.build.apply("not", result) if every else result


def _moments(build: Builder, view: View, dims: Sequence[int], less: float) -> tuple[View, View, View]:
    """Deviations from the mean, mean, and variance (divided by n − `less`)."""
    count = math.prod(view.shape[d] for d in dims)
    mean = build.apply("mul", build.total(view, dims), _part(view, dims))
    deviation = build.apply("sub", view, mean)
    total = build.total(build.apply("mul", deviation, deviation), dims)
    return deviation, mean, build.apply("mul", total, 1 / max(count - less, 0) if count > less else math.nan)


def _var_mean(self: Reader, node: Any) -> tuple[View, ...]:
    view = self.view(node.args[0])
    dims = _dims(self, node, argument(node, 1, "dim"))
    if "correction" in node.kwargs:
        given = node.kwargs["correction"]
        less = 1.0 if given is None else float(given)
    else:
        less = 1.0 if argument(node, 2, "unbiased", True) else 0.0
    _, mean, variance = _moments(self.build, view, dims, less)
    pair = (variance, mean)
    return pair if node.kwargs.get("keepdim", False) else tuple(without(v, dims) for v in pair)


def _layer_norm(self: Reader, node: Any) -> tuple[View, ...]:
    source, normalised, weight, bias, eps = node.args
    view, rank = self.view(source), source.meta["val"].dim()
    dims = self.dims(node, source, range(rank - len(normalised), rank))
    deviation, mean, variance = _moments(self.build, view, dims, 0)
    scale = self.build.apply("rsqrt", self.build.apply("add", variance, float(eps)))
    result = self.build.apply("mul", deviation, scale)
    if weight is not None:
        result = self.build.apply("mul", result, self.view(weight))
    if bias is not None:
        result = self.build.apply("add", result, self.view(bias))
    return result, mean, scale


def _softmax(self: Reader, node: Any, log: bool = False) -> View:
    view, build = self.view(node.args[0]), self.build
    dims = _dims(self, node, node.args[1])
    # the shift does not change the result, so it has no gradient
    shifted = build.apply("sub", view, build.stop(build.total(view, dims, "amax")))
    powers = build.apply("exp", shifted)
    total = build.total(powers, dims)
    return build.apply("sub", shifted, build.apply("log", total)) if log else build.apply("div", powers, total)


def _cat(self: Reader, node: Any) -> View:
    tensors: Any = node.args[0]
    shape = self.shape(node)
    (axis,) = self.dims(node, node, [argument(node, 1, "dim", 0)])
    strides, start, parts = dense(shape), 0, []
    for tensor in tensors:
        part = self.shape(tensor)
        parts.append((Place(part, strides, start * strides[axis]), broadcast(self.view(tensor), part)))
        start += part[axis]
    return self.build.scatter(shape, parts)


ROWWISE: dict[str, Handler] = {
    "sum": _sum,
    "mean": partial(_sum, mean=True),
    "amax": _extreme,
    "amin": partial(_extreme, least=True),
    "any": _any,
    "all": partial(_any, every=True),
    "var": lambda self, node: _var_mean(self, node)[0],
    "var_mean": _var_mean,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax,
    "_log_softmax": partial(_softmax, log=True),
    "cat": _cat,
}
"""Row-wise operations by PyTorch's name."""
