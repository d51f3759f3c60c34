"""Write pointwise operations as loops in C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from everstep.ship.c.c_values import Value, kind_of
from everstep.ship.c.c_writer import CWriter
from everstep.ship.sizes import NotExported, Size

Handler = Callable[..., Any]
_MATHS = (
    *("tanh", "exp", "log", "sqrt", "sin", "cos", "tan", "floor", "ceil", "erf", "atan", "asin", "acos", "sinh"),
    *("cosh", "asinh", "acosh", "atanh", "log1p", "expm1", "trunc"),
)
_UNARY = {
    **{name: f"std::{name}({{0}})" for name in _MATHS},
    "abs": "std::abs({0})",
    "round": "std::nearbyint({0})",
    "neg": "-{0}",
    "sigmoid": "sigmoid({0})",
    "reciprocal": "1 / {0}",
    "relu": "most({0}, ({T})0)",
    "square": "{0} * {0}",
    "rsqrt": "1 / std::sqrt({0})",
    "sign": "sign({0})",
    "sgn": "sign({0})",
    "silu": "{0} * sigmoid({0})",
    "hardsigmoid": "least(most({0} / 6 + ({T})0.5, ({T})0), ({T})1)",
}
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGICAL = {"logical_and": "{0} && {1}", "logical_or": "{0} || {1}", "logical_xor": "{0} != {1}"}
_BITS = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^", "__and__": "&", "__or__": "|", "__xor__": "^"}


def _of(formula: str, *operands: Any) -> Handler:
    """A handler that writes a formula of {0}, {1}, … in the type of the result, {T}."""

    def write(w: CWriter, node: fx.Node, *given: Any, **_: Any) -> Value:
        return computed(w, node, formula, *given)

    return write


def computed(w: CWriter, node: fx.Node, formula: str, *given: Any, dtype: torch.dtype | None = None) -> Value:
    """A node by a formula of operands in `dtype`; None: in that of the node."""
    dtype = node.meta["val"].dtype if dtype is None else dtype
    values: list[Value] = []
    parts: list[str | None] = []
    for one in given:
        if isinstance(one, fx.Node):
            parts.append(None)
            values.append(w.cast(one, dtype))
        else:
            parts.append(w.number(one, dtype))

    def filled(*numbers: str) -> str:
        left = iter(numbers)
        names = [f"({next(left)})" if part is None else part for part in parts]
        return formula.replace("{T}", kind_of(dtype)).format(*names)

    return w.each(w.kind(node), w.sizes(node), filled, *values)


def _common(*given: Any) -> torch.dtype:
    parts = [one.meta["val"] if isinstance(one, fx.Node) else 0 if isinstance(one, Size) else one for one in given]
    found: torch.dtype = torch.result_type(*parts)
    return found


def _compare(sign: str) -> Handler:
    def write(w: CWriter, node: fx.Node, a: Any, b: Any) -> Value:
        return computed(w, node, f"{{0}} {sign} {{1}}", a, b, dtype=_common(a, b))

    return write


def _logical(formula: str) -> Handler:
    def write(w: CWriter, node: fx.Node, *given: Any) -> Value:
        return computed(w, node, formula, *given, dtype=torch.bool)

    return write


def _added(sign: str) -> Handler:
    def write(w: CWriter, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Value:
        dtype = node.meta["val"].dtype
        if dtype == torch.bool:
            return computed(w, node, "{0} || {1}", a, b)
        formula = f"{{0}} {sign} {{1}}" if alpha == 1 else f"{{0}} {sign} {w.number(alpha, dtype)} * {{1}}"
        return computed(w, node, formula if dtype.is_floating_point else _wrapped(formula), a, b)

    return write


def _wrapped(formula: str) -> str:
    """Whole numbers that are too large begin anew, as in PyTorch."""
    return "({T})(" + formula.replace("{0}", "(uint64_t){0}").replace("{1}", "(uint64_t){1}") + ")"


def _mul(w: CWriter, node: fx.Node, a: Any, b: Any) -> Value:
    dtype = node.meta["val"].dtype
    if dtype == torch.bool:
        return computed(w, node, "{0} && {1}", a, b)
    return computed(w, node, "{0} * {1}" if dtype.is_floating_point else _wrapped("{0} * {1}"), a, b)


def _rsub(w: CWriter, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Any:
    return _added("-")(w, node, b, a, alpha)


def _div(w: CWriter, node: fx.Node, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if not node.meta["val"].dtype.is_floating_point:
        return computed(w, node, "floored({0}, {1})" if rounding_mode == "floor" else "{0} / {1}", a, b)
    whole = {None: "{0} / {1}", "floor": "std::floor({0} / {1})", "trunc": "std::trunc({0} / {1})"}
    return computed(w, node, whole[rounding_mode], a, b)


def _fmod(w: CWriter, node: fx.Node, a: Any, b: Any) -> Value:
    whole = node.meta["val"].dtype.is_floating_point
    return computed(w, node, "std::fmod({0}, {1})" if whole else "{0} % {1}", a, b)


def _pow(w: CWriter, node: fx.Node, a: Any, b: Any) -> Value:
    if not node.meta["val"].dtype.is_floating_point:
        raise NotExported("it uses pow of whole numbers, which C++ has no loop for here")
    return computed(w, node, "std::pow({0}, {1})", a, b)


def _shift(w: CWriter, node: fx.Node, x: fx.Node, by: int) -> Value:
    return computed(w, node, f"{{0}} >> {by}", x)


def _not(w: CWriter, node: fx.Node, x: fx.Node) -> Value:
    return computed(w, node, "!{0}" if node.meta["val"].dtype == torch.bool else "~{0}", x)


def _clamp(w: CWriter, node: fx.Node, x: Any, min: Any = None, max: Any = None) -> Value:
    given, formula = [x], "{0}"
    if min is not None:
        given.append(min)
        formula = "most({0}, {1})"
    if max is not None:
        given.append(max)
        formula = f"least({formula}, {{{len(given) - 1}}})"
    return computed(w, node, formula, *given)


def _clamp_max(w: CWriter, node: fx.Node, x: Any, max: Any) -> Value:
    return _clamp(w, node, x, None, max)


def _hardtanh(w: CWriter, node: fx.Node, x: Any, low: float = -1, high: float = 1) -> Value:
    return _clamp(w, node, x, low, high)


def _where(w: CWriter, node: fx.Node, mask: fx.Node, a: Any, b: Any) -> Value:
    dtype = node.meta["val"].dtype
    given = [w.cast(mask, torch.bool), w.cast(a, dtype), w.cast(b, dtype)]
    return w.each(w.kind(node), w.sizes(node), lambda m, x, y: f"{m} ? {x} : {y}", *given)


def _softplus(w: CWriter, node: fx.Node, x: Any, beta: float = 1, threshold: float = 20) -> Value:
    return computed(w, node, "softplus({0}, {1}, {2})", x, beta, threshold)


def _gelu(w: CWriter, node: fx.Node, x: Any, approximate: str = "none") -> Value:
    inner = "std::erf({0} * ({T})0.70710678118654752)"
    if approximate == "tanh":
        inner = "std::tanh(({T})0.79788456080286536 * ({0} + ({T})0.044715 * {0} * {0} * {0}))"
    return computed(w, node, f"({{T}})0.5 * {{0}} * (1 + {inner})", x)


def _elu(w: CWriter, node: fx.Node, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    formula = "{2} * ({0} > 0 ? {0} : {1} * std::expm1({0} * {3}))"
    return computed(w, node, formula, x, alpha, scale, input_scale)


def _celu(w: CWriter, node: fx.Node, x: Any, alpha: float = 1) -> Value:
    return _elu(w, node, x, alpha, 1, 1 / alpha)


def _leaky(w: CWriter, node: fx.Node, x: Any, slope: float = 0.01) -> Value:
    return computed(w, node, "{0} > 0 ? {0} : {1} * {0}", x, slope)


def _log_sigmoid(w: CWriter, node: fx.Node, x: fx.Node) -> list[Any]:
    value = w.value(x)
    return [w.each(value.kind, value.sizes, lambda one: f"-softplus(-{one}, ({value.kind})1, ({value.kind})20)", value)]


def _lerp(w: CWriter, node: fx.Node, a: Any, b: Any, weight: Any) -> Value:
    return computed(w, node, "{0} + {2} * ({1} - {0})", a, b, weight)


def _addcmul(w: CWriter, node: fx.Node, x: Any, a: Any, b: Any, value: float = 1) -> Value:
    return computed(w, node, "{0} + {3} * {1} * {2}", x, a, b, value)


def _same(w: CWriter, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Value:
    return w.cast(x, node.meta["val"].dtype)


POINTWISE: dict[str, Handler] = {
    **{name: _of(formula) for name, formula in _UNARY.items()},
    **{name: _compare(sign) for name, sign in _COMPARED.items()},
    **{name: _logical(formula) for name, formula in _LOGICAL.items()},
    "logical_not": _logical("!{0}"),
    **{name: _of(f"{{0}} {sign} {{1}}") for name, sign in _BITS.items()},
    "bitwise_not": _not,
    "__rshift__": _shift,
    "maximum": _of("most({0}, {1})"),
    "minimum": _of("least({0}, {1})"),
    "mul": _mul,
    "pow": _pow,
    "add": _added("+"),
    "sub": _added("-"),
    "rsub": _rsub,
    "div": _div,
    "true_divide": _div,
    "remainder": _of("modulo({0}, {1})"),
    "fmod": _fmod,
    "softplus": _softplus,
    "gelu": _gelu,
    "elu": _elu,
    "celu": _celu,
    "leaky_relu": _leaky,
    "log_sigmoid_forward": _log_sigmoid,
    "_prelu_kernel": _of("{0} > 0 ? {0} : {1} * {0}"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "hardtanh": _hardtanh,
    "where": _where,
    "lerp": _lerp,
    "addcmul": _addcmul,
    **dict.fromkeys(("clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh"), _same),
}
"""What writes each pointwise operation, by its PyTorch name."""
