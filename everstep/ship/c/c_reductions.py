"""Write reductions, softmaxes and running sums in C++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from everstep.ship.c.c_values import Number, Value, plus, product, shaped
from everstep.ship.c.c_writer import CWriter, axis
from everstep.ship.sizes import NotExported

Handler = Callable[..., Any]


def _dims(x: Value, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(len(x.sizes)))
    return [axis(d, x) for d in ([dim] if isinstance(dim, int) else dim)]


def _folded(w: CWriter, x: Value, dims: Sequence[int], start: str, formula: str) -> Value:
    """x reduced over `dims`, which stay with size 1; the formula is of {0}, the result so far, and {1}."""
    sizes = [1 if d in dims else n for d, n in enumerate(x.sizes)]
    out = w.new(x.kind, sizes)
    w.loops(sizes, lambda at: f"{out.one(at)} = {start};")
    every = out.spread(x.sizes)
    w.loops(x.sizes, lambda at: f"{every.one(at)} = {formula.format(every.one(at), x.one(at))};")
    return out


def _reduced(start: str, formula: str, mean: bool = False) -> Handler:
    def write(
        w: CWriter, node: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Value:
        value = w.cast(x, node.meta["val"].dtype)
        dims = _dims(value, dim)
        out = _folded(w, value, dims, start.replace("{T}", value.kind), formula)
        if mean:
            count = product([value.sizes[d] for d in dims])
            out = w.each(value.kind, out.sizes, lambda one: f"{one} / ({value.kind})({count})", out)
        return shaped(out, w.sizes(node))

    return write


def _var(
    w: CWriter, node: fx.Node, x: fx.Node, dim: Any = None, correction: Any = None, keepdim: bool = False
) -> Value:
    return _moments(w, x, dim, correction, w.sizes(node))[0]


def _var_mean(
    w: CWriter, node: fx.Node, x: fx.Node, dim: Any = None, correction: Any = None, keepdim: bool = False
) -> list[Value]:
    return list(_moments(w, x, dim, correction, w.sizes(next(iter(node.users)))))


def _moments(w: CWriter, x: fx.Node, dim: Any, correction: Any, sizes: Sequence[Number]) -> tuple[Value, Value]:
    value = w.value(x)
    dims, kind = _dims(value, dim), value.kind
    count = product([value.sizes[d] for d in dims])
    less = 1 if correction is None else correction
    total = _folded(w, value, dims, "0", "{0} + {1}")
    mean = w.each(kind, total.sizes, lambda one: f"{one} / ({kind})({count})", total)
    squares = w.each(kind, value.sizes, lambda one, m: f"({one} - {m}) * ({one} - {m})", value, mean)
    of_squares = _folded(w, squares, dims, "0", "{0} + {1}")
    left = f"most(({kind})({count}) - ({kind}){less}, ({kind})0)"
    variance = w.each(kind, total.sizes, lambda one: f"{one} / {left}", of_squares)
    return shaped(variance, sizes), shaped(mean, sizes)


def _layer_norm(
    w: CWriter, node: fx.Node, x: fx.Node, shape: list[int], weight: fx.Node | None, bias: fx.Node | None, eps: float
) -> list[Any]:
    value = w.packed(w.value(x))
    out, last = w.new(value.kind, value.sizes), product(shape)
    first = product(value.sizes[: len(value.sizes) - len(shape)])
    scale, shift = ("nullptr" if one is None else w.packed(w.value(one)).at for one in (weight, bias))
    w.line(f"layer_norm<{value.kind}>({value.at}, {first}, {last}, {scale}, {shift}, {eps!r}, {out.at});")
    return [out, None, None]


def _softmax(log: bool) -> Handler:
    def write(w: CWriter, node: fx.Node, x: fx.Node, dim: int, half: bool = False) -> Value:
        value = w.packed(w.value(x))
        out, d = w.new(value.kind, value.sizes), axis(dim, value)
        first, last = product(value.sizes[:d]), product(value.sizes[d + 1 :])
        size = value.sizes[d] if value.sizes else 1
        w.line(f"softmax<{value.kind}>({value.at}, {first}, {size}, {last}, {'true' if log else 'false'}, {out.at});")
        return out

    return write


def _arg(test: str) -> Handler:
    def write(w: CWriter, node: fx.Node, x: fx.Node, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            raise NotExported("it uses argmax or argmin without a dimension, which C++ has no loop for here")
        value = w.value(x)
        d = axis(dim, value)
        sizes = [1 if n == d else size for n, size in enumerate(value.sizes)]
        out, best = w.new("int64_t", sizes), w.lines.fresh("k")

        def body(at: list[str]) -> str:
            now, old = ([*at[:d], place, *at[d + 1 :]] for place in (best, out.one(at)))
            better = f"if ({test}({value.one(now)}, {value.one(old)})) {out.one(at)} = {best};"
            return f"{{ {out.one(at)} = 0; for (int64_t {best} = 1; {best} < {value.sizes[d]}; ++{best}) {better} }}"

        w.loops(sizes, body)
        return shaped(out, w.sizes(node))

    return write


def _running(formula: str) -> Callable[[CWriter, Value, int], Value]:
    """From the second on, each number by a formula of the result before, {0}, and itself, {1}."""

    def write(w: CWriter, value: Value, d: int) -> Value:
        out = w.copied(value)
        sizes = [plus(size, -1) if n == d else size for n, size in enumerate(value.sizes)]
        further = Value(out.moved(out.strides[d]), out.kind, out.sizes, out.strides)
        w.loops(sizes, lambda at: f"{further.one(at)} = {formula.format(out.one(at), further.one(at))};")
        return out

    return write


def _cumsum(w: CWriter, node: fx.Node, x: fx.Node, dim: int, dtype: Any = None) -> Value:
    value = w.cast(x, node.meta["val"].dtype)
    return _running("{0} + {1}")(w, value, axis(dim, value)) if value.sizes else value


def _cummax(w: CWriter, node: fx.Node, x: fx.Node, dim: int) -> list[Any]:
    if any(user.args[1] and user.users for user in node.users):
        raise NotExported("it uses the places of cummax, which C++ has no loop for here")
    value = w.value(x)
    return [_running("most({0}, {1})")(w, value, axis(dim, value)), None]


REDUCTIONS: dict[str, Handler] = {
    "sum": _reduced("0", "{0} + {1}"),
    "mean": _reduced("0", "{0} + {1}", mean=True),
    "amax": _reduced("lowest<{T}>()", "most({0}, {1})"),
    "amin": _reduced("highest<{T}>()", "least({0}, {1})"),
    "any": _reduced("false", "{0} || {1}"),
    "all": _reduced("true", "{0} && {1}"),
    "var": _var,
    "var_mean": _var_mean,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax(False),
    "_log_softmax": _softmax(True),
    "argmax": _arg("above"),
    "argmin": _arg("smaller"),
    "cumsum": _cumsum,
    "cummax": _cummax,
}
"""What writes each reduction, by its PyTorch name."""
