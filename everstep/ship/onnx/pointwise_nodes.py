"""Write pointwise operations as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from everstep.ship.onnx.node_writer import Writer
from everstep.ship.sizes import NotExported, Size

Handler = Callable[..., Any]
_SAME = {
    **{name: name.capitalize() for name in ("sigmoid", "tanh", "exp", "log", "sqrt", "neg", "abs", "sin", "cos")},
    **{name: name.capitalize() for name in ("floor", "ceil", "round", "erf", "atan", "asin", "acos", "tan")},
    **{name: name.capitalize() for name in ("sinh", "cosh", "asinh", "acosh", "atanh", "reciprocal", "relu")},
    "sign": "Sign",
    "sgn": "Sign",
    "logical_not": "Not",
}
_ARITHMETIC = {"mul": "Mul", "maximum": "Max", "minimum": "Min", "pow": "Pow"}
_COMPARED = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}
_LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
_BITS = {"bitwise_and": ("And", "BitwiseAnd"), "bitwise_or": ("Or", "BitwiseOr"), "bitwise_xor": ("Xor", "BitwiseXor")}
_BITS |= {"__and__": _BITS["bitwise_and"], "__or__": _BITS["bitwise_or"], "__xor__": _BITS["bitwise_xor"]}


def _unary(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, x: fx.Node, **_: Any) -> str:
        return str(w.add(operation, w.like(x, w.dtype(node))))

    return write


def _binary(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
        dtype = w.dtype(node)
        return str(w.add(operation, w.like(a, dtype), w.like(b, dtype)))

    return write


def _common(a: Any, b: Any) -> torch.dtype:
    """The dtype in which two values are compared; a dynamic size is int64."""
    parts = [one.meta["val"] if isinstance(one, fx.Node) else 0 if isinstance(one, Size) else one for one in (a, b)]
    found: torch.dtype = torch.result_type(*parts)
    return found


def _compare(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
        dtype = _common(a, b)
        dtype = torch.int32 if dtype == torch.bool and operation != "Equal" else dtype
        return str(w.add(operation, w.like(a, dtype), w.like(b, dtype)))

    return write


def _not_equal(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
    return str(w.add("Not", _compare("Equal")(w, node, a, b)))


def _logical(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
        return str(w.add(operation, w.like(a, torch.bool), w.like(b, torch.bool)))

    return write


def _bits(of_bool: str, of_ints: str) -> Handler:
    def write(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
        dtype = w.dtype(node)
        return str(w.add(of_bool if dtype == torch.bool else of_ints, w.like(a, dtype), w.like(b, dtype)))

    return write


def _bitwise_not(w: Writer, node: fx.Node, x: fx.Node) -> str:
    return str(w.add("Not" if w.dtype(node) == torch.bool else "BitwiseNot", w.name(x)))


def _shift_right(w: Writer, node: fx.Node, x: fx.Node, by: int) -> str:
    """Right shift; of signed numbers (x − x mod 2^n) / 2^n, which rounds down."""
    divisor = w.number(1 << by, w.dtype(node))
    rest = w.add("Mod", w.name(x), divisor)
    return str(w.add("Div", w.add("Sub", w.name(x), rest), divisor))


def _added(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> str:
        dtype = w.dtype(node)
        left, right = w.like(a, dtype), w.like(b, dtype)
        right = right if alpha == 1 else w.add("Mul", right, w.number(alpha, dtype))
        if dtype == torch.bool:
            return str(w.add("Or", left, right))
        return str(w.add(operation, left, right))

    return write


def _rsub(w: Writer, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> str:
    return str(_added("Sub")(w, node, b, a, alpha))


def _div(w: Writer, node: fx.Node, a: Any, b: Any, rounding_mode: str | None = None) -> str:
    dtype = w.dtype(node)
    if rounding_mode is not None and not dtype.is_floating_point:
        raise NotExported(f"it divides whole numbers with rounding_mode={rounding_mode}")
    found = w.add("Div", w.like(a, dtype), w.like(b, dtype))
    if rounding_mode == "trunc":
        return _truncated(w, found)
    return str(w.add("Floor", found) if rounding_mode == "floor" else found)


def _truncated(w: Writer, x: str) -> str:
    return str(w.add("Mul", w.add("Sign", x), w.add("Floor", w.add("Abs", x))))


def _remainder(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
    dtype = w.dtype(node)
    x, y = w.like(a, dtype), w.like(b, dtype)
    if not dtype.is_floating_point:
        return str(w.add("Mod", x, y))
    return str(w.add("Sub", x, w.add("Mul", y, w.add("Floor", w.add("Div", x, y)))))


def _fmod(w: Writer, node: fx.Node, a: Any, b: Any) -> str:
    dtype = w.dtype(node)
    return str(w.add("Mod", w.like(a, dtype), w.like(b, dtype), fmod=1))


def _of_formula(formula: Callable[..., str]) -> Handler:
    """A handler that writes `formula(w, x, constant, …)`: x is a float value, `constant` gives the name of a number."""

    def write(w: Writer, node: fx.Node, x: fx.Node, *more: Any, **named: Any) -> str:
        dtype = w.dtype(node)
        return formula(w, w.like(x, dtype), lambda value: w.number(value, dtype), *more, **named)

    return write


def _silu(w: Writer, x: str, c: Any) -> str:
    return str(w.add("Mul", x, w.add("Sigmoid", x)))


def _softplus(w: Writer, x: str, c: Any, beta: float = 1, threshold: float = 20) -> str:
    if beta == 1:
        return str(w.add("Softplus", x))
    return str(w.add("Div", w.add("Softplus", w.add("Mul", x, c(beta))), c(beta)))


def _gelu(w: Writer, x: str, c: Any, approximate: str = "none") -> str:
    if approximate == "tanh":
        cube = w.add("Mul", w.add("Mul", x, x), w.add("Mul", x, c(0.044715)))
        inner = w.add("Tanh", w.add("Mul", w.add("Add", x, cube), c(math.sqrt(2 / math.pi))))
    else:
        inner = w.add("Erf", w.add("Mul", x, c(math.sqrt(0.5))))
    return str(w.add("Mul", w.add("Mul", x, c(0.5)), w.add("Add", inner, c(1))))


def _elu(w: Writer, x: str, c: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    inner = x if input_scale == 1 else w.add("Mul", x, c(input_scale))
    below = w.add("Mul", w.add("Sub", w.add("Exp", w.add("Min", inner, c(0))), c(1)), c(alpha))
    found = w.add("Where", w.add("Greater", x, c(0)), x, below)
    return str(found if scale == 1 else w.add("Mul", found, c(scale)))


def _leaky(w: Writer, x: str, c: Any, slope: float = 0.01) -> str:
    return str(w.add("LeakyRelu", x, alpha=float(slope)))


def _hardsigmoid(w: Writer, x: str, c: Any) -> str:
    return str(w.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _log_sigmoid(w: Writer, x: str, c: Any) -> Any:
    return [w.add("Neg", w.add("Softplus", w.add("Neg", x))), ""]


def _prelu(w: Writer, node: fx.Node, x: fx.Node, weight: fx.Node) -> str:
    value = w.name(x)
    below = w.add("Mul", value, w.name(weight))
    return str(w.add("Where", w.add("Greater", value, w.number(0, w.dtype(node))), value, below))


def _clamp(w: Writer, node: fx.Node, x: fx.Node, min: Any = None, max: Any = None) -> str:
    dtype = w.dtype(node)
    found = w.like(x, dtype)
    found = found if min is None else w.add("Max", found, w.like(min, dtype))
    return str(found if max is None else w.add("Min", found, w.like(max, dtype)))


def _clamp_max(w: Writer, node: fx.Node, x: fx.Node, max: Any) -> str:
    return _clamp(w, node, x, None, max)


def _hardtanh(w: Writer, node: fx.Node, x: fx.Node, low: float = -1, high: float = 1) -> str:
    return _clamp(w, node, x, low, high)


def _where(w: Writer, node: fx.Node, mask: Any, a: Any, b: Any) -> str:
    dtype = w.dtype(node)
    return str(w.add("Where", w.like(mask, torch.bool), w.like(a, dtype), w.like(b, dtype)))


def _lerp(w: Writer, node: fx.Node, a: Any, b: Any, weight: Any) -> str:
    dtype = w.dtype(node)
    start = w.like(a, dtype)
    step = w.add("Mul", w.like(weight, dtype), w.add("Sub", w.like(b, dtype), start))
    return str(w.add("Add", start, step))


def _addcmul(w: Writer, node: fx.Node, x: Any, a: Any, b: Any, value: float = 1) -> str:
    dtype = w.dtype(node)
    product = w.add("Mul", w.like(a, dtype), w.like(b, dtype))
    product = product if value == 1 else w.add("Mul", product, w.number(value, dtype))
    return str(w.add("Add", w.like(x, dtype), product))


POINTWISE: dict[str, Handler] = {
    **{name: _unary(operation) for name, operation in _SAME.items()},
    **{name: _binary(operation) for name, operation in _ARITHMETIC.items()},
    **{name: _compare(operation) for name, operation in _COMPARED.items()},
    **{name: _logical(operation) for name, operation in _LOGICAL.items()},
    **{name: _bits(*operations) for name, operations in _BITS.items()},
    "ne": _not_equal,
    "bitwise_not": _bitwise_not,
    "__rshift__": _shift_right,
    "add": _added("Add"),
    "sub": _added("Sub"),
    "rsub": _rsub,
    "div": _div,
    "true_divide": _div,
    "remainder": _remainder,
    "fmod": _fmod,
    "square": lambda w, node, x: w.add("Mul", w.name(x), w.name(x)),
    "rsqrt": lambda w, node, x: w.add("Reciprocal", w.add("Sqrt", w.like(x, w.dtype(node)))),
    "log1p": _of_formula(lambda w, x, c: w.add("Log", w.add("Add", x, c(1)))),
    "expm1": _of_formula(lambda w, x, c: w.add("Sub", w.add("Exp", x), c(1))),
    "trunc": lambda w, node, x: _truncated(w, w.name(x)),
    "silu": _of_formula(_silu),
    "softplus": _of_formula(_softplus),
    "gelu": _of_formula(_gelu),
    "elu": _of_formula(_elu),
    "celu": _of_formula(lambda w, x, c, alpha=1: _elu(w, x, c, alpha, 1, 1 / alpha)),
    "leaky_relu": _of_formula(_leaky),
    "hardsigmoid": _of_formula(_hardsigmoid),
    "log_sigmoid_forward": lambda w, node, x: _log_sigmoid(w, w.name(x), None),
    "_prelu_kernel": _prelu,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "hardtanh": _hardtanh,
    "where": _where,
    "lerp": _lerp,
    "addcmul": _addcmul,
}
"""The handlers of pointwise operations by PyTorch name."""
