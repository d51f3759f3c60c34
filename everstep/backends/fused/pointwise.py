"""PyTorch's pointwise operations as nodes of the row graph."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import fx

from everstep.backends.fused.reader import Handler, Reader, argument, scaled, without
from everstep.backends.fused.row_graph import Builder, View
from everstep.tracing.refusals import Untraceable

_DIRECT = {
    *("neg", "sigmoid", "tanh", "relu", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "log1p", "expm1"),
    *("mul", "maximum", "minimum", "sign", "reciprocal", "floor", "atan", "gt", "ge", "lt", "le", "eq", "ne"),
}
_LOGIC = {"logical_and": "and", "logical_or": "or", "logical_not": "not", "bitwise_and": "and", "bitwise_or": "or"}
_LOGIC |= {"bitwise_not": "not", "bitwise_xor": "ne"}


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
        sign, self.operand(node.args[0]), scaled(self.build, self.view(node.args[1]), argument(node, 2, "alpha", 1))
    )


def _rsub(self: Reader, node: Any) -> View:
    less = scaled(self.build, self.view(node.args[0]), argument(node, 2, "alpha", 1))
    return self.build.apply("sub", self.operand(node.args[1]), less)


def _where(self: Reader, node: Any) -> View:
    return self.build.apply("where", *(self.view(a) for a in node.args))


def _clamp(self: Reader, node: Any) -> View:
    return _clamped(self, node, argument(node, 1, "min"), argument(node, 2, "max"))


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
    if power == 0:  # 1, with a zero derivative by x, as in PyTorch
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
    """Round half to even."""
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
    """x − n · ⌊x / n⌋ for an integer n; equal to PyTorch bit for bit while x is below 2^24 (2^53 in float64).

    Rounding can raise the quotient to the next integer, but never lower it past one.
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
    beta, threshold = float(argument(node, 1, "beta", 1)), float(argument(node, 2, "threshold", 20))
    view = self.view(node.args[0])
    multiple = self.build.apply("mul", view, beta)
    # exp of the bounded value, so that the branch not taken does not overflow into the gradient
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
    return _exponential(self, node, *(float(argument(node, k, name, 1)) for k, name in names))


def _celu(self: Reader, node: Any) -> View:
    alpha = float(argument(node, 1, "alpha", 1))
    return _exponential(self, node, alpha, 1.0, 1 / alpha)


def _exponential(self: Reader, node: Any, alpha: float, scale: float, inner: float) -> View:
    view = self.view(node.args[0])
    below = self.build.apply("mul", self.build.apply("clamp_max", view, 0.0), inner)
    curve = self.build.apply("mul", self.build.apply("expm1", below), alpha * scale)
    return self.build.apply("where", self.build.apply("le", view, 0.0), curve, scaled(self.build, view, scale))


def _leaky_relu(self: Reader, node: Any) -> View:
    view = self.view(node.args[0])
    below = self.build.apply("mul", view, float(argument(node, 1, "negative_slope", 0.01)))
    return _rectified(self.build, view, view, below)


def _prelu(self: Reader, node: Any) -> View:
    view, slope = self.view(node.args[0]), self.view(node.args[1])
    if slope.shape and len(slope.shape) > len(view.shape):
        slope = without(slope, range(len(slope.shape) - len(view.shape)))
    return _rectified(self.build, view, view, self.build.apply("mul", view, slope))


def _between(build: Builder, view: View, low: float, high: float, line: View, ends: tuple[float, float]) -> View:
    """A linear function between bounds, constant beyond; the gradient at the bounds is zero."""
    below = build.apply("where", build.apply("ge", view, high), ends[1], line)
    return build.apply("where", build.apply("le", view, low), ends[0], below)


def _hardtanh(self: Reader, node: Any) -> View:
    low, high = float(argument(node, 1, "min_val", -1)), float(argument(node, 2, "max_val", 1))
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
"""Pointwise operations by PyTorch's name."""
