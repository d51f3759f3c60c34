"""PyTorch's operations on the numbers of one row, each as nodes of the engine's graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import fx

from everstep.backends.fused.row_graph import Builder, Place, Shape, View, broadcast, dense
from everstep.tracing.recorder import Untraceable, operation_name


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
_DIRECT = {
    *("neg", "sigmoid", "tanh", "relu", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "log1p", "expm1"),
    *("mul", "maximum", "minimum", "sign", "reciprocal", "floor", "atan", "gt", "ge", "lt", "le", "eq", "ne"),
}
_LOGIC = {"logical_and": "and", "logical_or": "or", "logical_not": "not", "bitwise_and": "and", "bitwise_or": "or"}
_LOGIC |= {"bitwise_not": "not", "bitwise_xor": "ne"}


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


def _given(node: Any, place: int, name: str, default: Any = None) -> Any:
    """An argument that may be named."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _direct(self: Reader, node: Any, op: str) -> View:
    return self.build.apply(op, *(self.operand(a) for a in node.args))


def _div(self: Reader, node: Any) -> View:
    if node.kwargs.get("rounding_mode"):
        raise Untraceable("division that rounds is unknown to the compiled loop")
    return _direct(self, node, "div")


def _add(self: Reader, node: Any, sign: str) -> View:
    if node.meta["val"].dtype == torch.bool:
        return _direct(self, node, "or")
    return self.build.apply(
        sign, self.operand(node.args[0]), scaled(self.build, self.view(node.args[1]), _given(node, 2, "alpha", 1))
    )


def _rsub(self: Reader, node: Any) -> View:
    less = scaled(self.build, self.view(node.args[0]), _given(node, 2, "alpha", 1))
    return self.build.apply("sub", self.operand(node.args[1]), less)


def _dims(self: Reader, node: Any, given: Any) -> list[int]:
    """Which of the row's dimensions are reduced; none given means all, and so the batch."""
    source, given = node.args[0], given if isinstance(given, (list, tuple)) else [given]
    if not given or None in given:
        given = range(source.meta["val"].dim())
    return self.dims(node, source, given)


def _part(view: View, dims: Sequence[int]) -> float:
    """One over how many numbers there are; of none, NaN."""
    count = math.prod(view.shape[d] for d in dims)
    return 1 / count if count else math.nan


def _sum(self: Reader, node: Any, mean: bool = False) -> View:
    view = self.view(node.args[0])
    dims = _dims(self, node, _given(node, 1, "dim"))
    total = self.build.total(view, dims)
    if mean:
        total = self.build.apply("mul", total, _part(view, dims))
    return total if _given(node, 2, "keepdim") else without(total, dims)


def _extreme(self: Reader, node: Any, least: bool = False) -> View:
    view = self.view(node.args[0])
    if least:
        view = self.build.apply("neg", view)
    dims = _dims(self, node, _given(node, 1, "dim"))
    total = self.build.total(view, dims, "amax")
    result = total if _given(node, 2, "keepdim") else without(total, dims)
    return self.build.apply("neg", result) if least else result


def _any(self: Reader, node: Any, every: bool = False) -> View:
    view = self.build.apply("ne", self.view(node.args[0]), 0.0)
    dims = _dims(self, node, _given(node, 1, "dim"))
    if not all(view.shape[d] for d in dims):
        return self.build.literal(float(every), self.shape(node))
    if every:
        view = self.build.apply("not", view)
    total = self.build.total(view, dims, "amax")
    result = total if _given(node, 2, "keepdim") else without(total, dims)
    return self.build.apply("not", result) if every else result


def _moments(build: Builder, view: View, dims: Sequence[int], less: float) -> tuple[View, View, View]:
    """Deviations, mean and variance (over n − `less`)."""
    count = math.prod(view.shape[d] for d in dims)
    mean = build.apply("mul", build.total(view, dims), _part(view, dims))
    deviation = build.apply("sub", view, mean)
    total = build.total(build.apply("mul", deviation, deviation), dims)
    return deviation, mean, build.apply("mul", total, 1 / max(count - less, 0) if count > less else math.nan)


def _var_mean(self: Reader, node: Any) -> tuple[View, ...]:
    view = self.view(node.args[0])
    dims = _dims(self, node, _given(node, 1, "dim"))
    if "correction" in node.kwargs:
        given = node.kwargs["correction"]
        less = 1.0 if given is None else float(given)
    else:
        less = 1.0 if _given(node, 2, "unbiased", True) else 0.0
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
    # what is taken from all makes no difference, and so has no gradient
    shifted = build.apply("sub", view, build.stop(build.total(view, dims, "amax")))
    powers = build.apply("exp", shifted)
    total = build.total(powers, dims)
    return build.apply("sub", shifted, build.apply("log", total)) if log else build.apply("div", powers, total)


def _cat(self: Reader, node: Any) -> View:
    tensors: Any = node.args[0]
    shape = self.shape(node)
    (axis,) = self.dims(node, node, [_given(node, 1, "dim", 0)])
    strides, start, parts = dense(shape), 0, []
    for tensor in tensors:
        part = self.shape(tensor)
        parts.append((Place(part, strides, start * strides[axis]), broadcast(self.view(tensor), part)))
        start += part[axis]
    return self.build.scatter(shape, parts)


def _where(self: Reader, node: Any) -> View:
    return self.build.apply("where", *(self.view(a) for a in node.args))


def _clamp(self: Reader, node: Any) -> View:
    return _clamped(self, node, _given(node, 1, "min"), _given(node, 2, "max"))


def _clamped(self: Reader, node: Any, low: Any, high: Any) -> View:
    view = self.view(node.args[0])
    for op, bound in (("clamp_min", low), ("clamp_max", high)):
        if isinstance(bound, fx.Node):
            raise Untraceable("its step clamps by a tensor; use torch.maximum and torch.minimum")
        if bound is not None:
            view = self.build.apply(op, view, float(bound))
    return view


def _pow(self: Reader, node: Any) -> View:
    view, power = self.view(node.args[0]), node.args[1]
    if power == 0:  # 1, which hangs on x as PyTorch's does: with a derivative of zero
        return self.build.apply("add", self.build.apply("mul", self.build.apply("sign", view), 0.0), 1.0)
    if isinstance(power, fx.Node):
        return self.build.apply("pow", view, self.view(power))
    if power == 2:
        return self.build.apply("mul", view, view)
    if power == 3:
        return self.build.apply("mul", self.build.apply("mul", view, view), view)
    if power == 0.5:
        return self.build.apply("sqrt", view)
    if power == -1:
        return self.build.apply("reciprocal", view)
    return self.build.apply("pow", view, float(power))


def _ceil(self: Reader, node: Any) -> View:
    return self.build.apply("neg", self.build.apply("floor", self.build.apply("neg", self.view(node.args[0]))))


def _trunc(self: Reader, node: Any) -> View:
    view = self.view(node.args[0])
    return self.build.apply(
        "mul", self.build.apply("sign", view), self.build.apply("floor", self.build.apply("abs", view))
    )


def _round(self: Reader, node: Any) -> View:
    """To the nearest whole number, of two to the even one."""
    if node.kwargs.get("decimals"):
        raise Untraceable("its step rounds to decimals, which the compiled loop does not hold")
    view, build = self.view(node.args[0]), self.build
    below = build.apply("floor", view)
    rest = build.apply("sub", view, below)
    half = build.apply("mul", below, 0.5)
    odd = build.apply("ne", build.apply("floor", half), half)
    up = build.apply("or", build.apply("gt", rest, 0.5), build.apply("and", build.apply("eq", rest, 0.5), odd))
    return build.apply("add", below, up)


def _remainder(self: Reader, node: Any) -> View:
    """x − n · ⌊x / n⌋ for a whole number n: PyTorch's to the bit while x is below 2^24 (2^53 in float64).

    The quotient can be rounded up to the next whole number, never down past one.
    """
    divisor = node.args[1]
    if isinstance(divisor, fx.Node) or divisor != int(divisor) or divisor <= 0:
        raise Untraceable(f"its step takes a remainder by {divisor}; the compiled loop holds whole numbers above 0")
    view, build, n = self.view(node.args[0]), self.build, float(divisor)
    rest = build.apply("sub", view, build.apply("mul", build.apply("floor", build.apply("div", view, n)), n))
    return build.apply("where", build.apply("lt", rest, 0.0), build.apply("add", rest, n), rest)


def _silu(self: Reader, node: Any) -> View:
    view = self.view(node.args[0])
    return self.build.apply("mul", view, self.build.apply("sigmoid", view))


def _softplus(self: Reader, node: Any) -> View:
    beta, threshold = float(_given(node, 1, "beta", 1)), float(_given(node, 2, "threshold", 20))
    view = self.view(node.args[0])
    multiple = self.build.apply("mul", view, beta)
    # exp of what is kept alone, so that the branch not taken overflows into no gradient
    bounded = self.build.apply("where", self.build.apply("gt", multiple, threshold), threshold, multiple)
    soft = self.build.apply("div", self.build.apply("log1p", self.build.apply("exp", bounded)), beta)
    return self.build.apply("where", self.build.apply("gt", multiple, threshold), view, soft)


def _log_sigmoid(self: Reader, node: Any) -> tuple[View, ...]:
    view = self.view(node.args[0])
    small = self.build.apply("exp", self.build.apply("neg", self.build.apply("abs", view)))
    result = self.build.apply("sub", self.build.apply("minimum", view, 0.0), self.build.apply("log1p", small))
    return result, small


def _rectified(build: Builder, view: View, above: View, below: View) -> View:
    return build.apply("where", build.apply("gt", view, 0.0), above, below)


def _elu(self: Reader, node: Any) -> View:
    names = ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    return _exponential(self, node, *(float(_given(node, k, name, 1)) for k, name in names))


def _celu(self: Reader, node: Any) -> View:
    alpha = float(_given(node, 1, "alpha", 1))
    return _exponential(self, node, alpha, 1.0, 1 / alpha)


def _exponential(self: Reader, node: Any, alpha: float, scale: float, inner: float) -> View:
    view = self.view(node.args[0])
    below = self.build.apply("mul", self.build.apply("clamp_max", view, 0.0), inner)
    curve = self.build.apply("mul", self.build.apply("expm1", below), alpha * scale)
    return self.build.apply("where", self.build.apply("le", view, 0.0), curve, scaled(self.build, view, scale))


def _leaky_relu(self: Reader, node: Any) -> View:
    view = self.view(node.args[0])
    below = self.build.apply("mul", view, float(_given(node, 1, "negative_slope", 0.01)))
    return _rectified(self.build, view, view, below)


def _prelu(self: Reader, node: Any) -> View:
    view, slope = self.view(node.args[0]), self.view(node.args[1])
    if slope.shape and len(slope.shape) > len(view.shape):
        slope = without(slope, range(len(slope.shape) - len(view.shape)))
    return _rectified(self.build, view, view, self.build.apply("mul", view, slope))


def _between(build: Builder, view: View, low: float, high: float, line: View, ends: tuple[float, float]) -> View:
    """A line between bounds, beyond which it is constant; no gradient at the bounds themselves."""
    below = build.apply("where", build.apply("ge", view, high), ends[1], line)
    return build.apply("where", build.apply("le", view, low), ends[0], below)


def _hardtanh(self: Reader, node: Any) -> View:
    low, high = float(_given(node, 1, "min_val", -1)), float(_given(node, 2, "max_val", 1))
    view = self.view(node.args[0])
    return _between(self.build, view, low, high, view, (low, high))


def _hardsigmoid(self: Reader, node: Any) -> View:
    view, build = self.view(node.args[0]), self.build
    line = build.apply("add", build.apply("mul", view, 1 / 6), 0.5)
    return _between(build, view, -3.0, 3.0, line, (0.0, 1.0))


def _gelu(self: Reader, node: Any) -> View:
    view, build = self.view(node.args[0]), self.build
    if node.kwargs.get("approximate", "none") == "tanh":
        cube = build.apply("mul", build.apply("mul", view, view), view)
        inner = build.apply("mul", build.apply("add", view, build.apply("mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        curve = build.apply("tanh", inner)
    else:
        curve = build.apply("erf", build.apply("mul", view, math.sqrt(0.5)))
    return build.apply("mul", build.apply("mul", view, 0.5), build.apply("add", curve, 1.0))


def _addcmul(self: Reader, node: Any) -> View:
    product = self.build.apply("mul", self.view(node.args[1]), self.view(node.args[2]))
    return self.build.apply("add", self.view(node.args[0]), scaled(self.build, product, node.kwargs.get("value", 1)))


def _lerp(self: Reader, node: Any) -> View:
    start, end, weight = self.view(node.args[0]), self.view(node.args[1]), self.operand(node.args[2])
    return self.build.apply("add", start, self.build.apply("mul", self.build.apply("sub", end, start), weight))


Handler = Callable[[Any, fx.Node], Any]

POINTWISE: dict[str, Handler] = {
    **{name: partial(_direct, op=name) for name in _DIRECT},
    **{name: partial(_direct, op=op) for name, op in _LOGIC.items()},
    "add": partial(_add, sign="add"),
    "sub": partial(_add, sign="sub"),
    "rsub": _rsub,
    "div": _div,
    "detach": lambda self, node: self.build.stop(self.view(node.args[0])),
    "where": _where,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda self, node: _clamped(self, node, None, node.args[1]),
    "pow": _pow,
    "ceil": _ceil,
    "trunc": _trunc,
    "round": _round,
    "remainder": _remainder,
    "silu": _silu,
    "softplus": _softplus,
    "log_sigmoid_forward": _log_sigmoid,
    "elu": _elu,
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "_prelu_kernel": _prelu,
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "gelu": _gelu,
    "addcmul": _addcmul,
    "lerp": _lerp,
}
"""Number by number, by PyTorch's name."""

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
"""Of whole rows, by PyTorch's name. Products and views are `lowering.py`'s."""
