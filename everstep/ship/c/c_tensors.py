"""Write products and views in C++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from everstep.ship.c.c_values import Number, Value, plus, shaped, sized, times
from everstep.ship.c.c_writer import CWriter, axis
from everstep.ship.sizes import NotExported, Size

Handler = Callable[..., Any]


# ------------------------------------------------------------------------------------------------ products


def _product(w: CWriter, a: Value, b: Value, into: Value) -> None:
    """into = a b, of matrices (rows, depth) and (depth, width)."""
    (rows, depth), (_, width) = a.sizes, b.sizes
    if b.strides[1] != 1 and b.strides[0] != 1:
        b = w.copied(b)
    of_a, of_b = (f"{value.at}, {value.strides[0]}, {value.strides[1]}" for value in (a, b))
    w.line(f"product({of_a}, {of_b}, {rows}, {depth}, {width}, {into.at});")


def _mm(w: CWriter, node: fx.Node, a: fx.Node, b: fx.Node) -> Value:
    out = w.new(w.kind(node), w.sizes(node))
    _product(w, w.value(a), w.value(b), out)
    return out


def _bmm(w: CWriter, node: fx.Node, a: fx.Node, b: fx.Node) -> Value:
    left, right, out = w.value(a), w.value(b), w.new(w.kind(node), w.sizes(node))
    at = w.lines.fresh("i")
    w.line(f"for (int64_t {at} = 0; {at} < {out.sizes[0]}; ++{at}) {{")

    def part(value: Value) -> Value:
        return Value(value.moved(times(at, value.strides[0])), value.kind, value.sizes[1:], value.strides[1:])

    _product(w, part(left), part(right), part(out))
    w.line("}")
    return out


def _mv(w: CWriter, node: fx.Node, matrix: fx.Node, vector: fx.Node) -> Value:
    out, right = w.new(w.kind(node), w.sizes(node)), w.packed(w.value(vector))
    column = Value(right.at, right.kind, (*right.sizes, 1), (1, 1))
    _product(w, w.value(matrix), column, Value(out.at, out.kind, (*out.sizes, 1), (1, 1)))
    return out


def _plus_product(of: Handler) -> Handler:
    def write(
        w: CWriter, node: fx.Node, bias: fx.Node, a: fx.Node, b: fx.Node, beta: float = 1, alpha: float = 1
    ) -> Value:
        kind, made = w.kind(node), of(w, node, a, b)
        formula = f"({kind}){alpha!r} * {{0}} + ({kind}){beta!r} * {{1}}" if (alpha, beta) != (1, 1) else "{0} + {1}"
        return w.each(kind, w.sizes(node), lambda x, y: formula.format(x, y), made, w.value(bias))

    return write


# ------------------------------------------------------------------------------------------------ views


def _view(w: CWriter, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Value:
    return shaped(w.packed(w.value(x)), w.sizes(node))


def _turned(value: Value, order: Sequence[int]) -> Value:
    sizes, strides = ([of[d] for d in order] for of in (value.sizes, value.strides))
    return Value(value.at, value.kind, tuple(sizes), tuple(strides))


def _transpose(w: CWriter, node: fx.Node, x: fx.Node, first: int = 0, second: int = 1) -> Value:
    value = w.value(x)
    order = list(range(len(value.sizes)))
    if len(order) > 1:
        order[first], order[second] = order[second], order[first]
    return _turned(value, order)


def _permute(w: CWriter, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> Value:
    value = w.value(x)
    return _turned(value, [axis(d, value) for d in dims])


def _expand(w: CWriter, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Value:
    return w.value(x).spread(w.sizes(node))


def _place(size: Number, place: Any) -> Number:
    """A place in a dimension; negative ones count from its end."""
    if isinstance(place, Size):
        return sized(place)
    return plus(size, place) if place < 0 else int(place)


def _part(value: Value, dim: int, start: Number, size: Number, step: int = 1) -> Value:
    """Numbers of one dimension from a place on."""
    sizes, strides = list(value.sizes), list(value.strides)
    at = value.moved(times(start, strides[dim]))
    sizes[dim], strides[dim] = size, times(step, strides[dim])
    return Value(at, value.kind, tuple(sizes), tuple(strides))


def _slice(
    w: CWriter, node: fx.Node, x: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    value = w.value(x)
    d = axis(dim, value)
    first, size = _place(value.sizes[d], 0 if start is None else start), w.sizes(node)[d]
    _check(w, first, times(step, plus(size, -1)), value.sizes[d], size)
    return _part(value, d, first, size, step)


def _check(w: CWriter, first: Number, further: Number, size: Number, taken: Number = 1) -> None:
    """Refuse an input with which places `first` … `first` + `further` are not all in a dimension, if any are taken."""
    if not all(isinstance(number, int) for number in (first, further, size)):
        inside = f"{first} >= 0 && {plus(first, further)} < {size}"
        w.line(f"if ({taken} > 0 && !({inside})) return 1;")


def _without(value: Value, dim: int, place: Number) -> Value:
    return Value(
        value.moved(times(place, value.strides[dim])),
        value.kind,
        (*value.sizes[:dim], *value.sizes[dim + 1 :]),
        (*value.strides[:dim], *value.strides[dim + 1 :]),
    )


def _select(w: CWriter, node: fx.Node, x: fx.Node, dim: int, index: Any) -> Value:
    value = w.value(x)
    d = axis(dim, value)
    place = _place(value.sizes[d], index)
    _check(w, place, 0, value.sizes[d])
    return _without(value, d, place)


def _parted(w: CWriter, node: fx.Node, x: fx.Node, sizes: Any, dim: int = 0) -> list[Value]:
    value = w.value(x)
    d, parts = axis(dim, value), node.meta["val"]
    if isinstance(value.sizes[d], str) and len(parts) > 1:
        if len({part.shape[d] for part in parts}) > 1:
            raise NotExported("it splits a dynamic size into unequal parts, which C++ has no loop for here")
        each = f"({value.sizes[d]} / {len(parts)})"
        return [_part(value, d, times(number, each), each) for number in range(len(parts))]
    found: list[Value] = []
    start = 0
    for part in parts:
        size = value.sizes[d] if len(parts) == 1 else part.shape[d]
        found.append(_part(value, d, start, size))
        start += part.shape[d]
    return found


def _unbind(w: CWriter, node: fx.Node, x: fx.Node, dim: int = 0) -> list[Value]:
    value = w.value(x)
    return [_without(value, axis(dim, value), place) for place in range(len(node.meta["val"]))]


def _cat(w: CWriter, node: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> Value:
    out = w.new(w.kind(node), w.sizes(node))
    d, start = axis(dim, out), 0
    place: Number = start
    for one in tensors:
        value = w.cast(one, node.meta["val"].dtype)
        if len(value.sizes) != len(out.sizes):  # as in PyTorch, what is empty may have one dimension
            continue
        w.store(_part(out, d, place, value.sizes[d]), value)
        place = plus(place, value.sizes[d])
    return out


def _flip(w: CWriter, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> Value:
    value = w.value(x)
    for dim in dims:
        d = axis(dim, value)
        value = _part(value, d, plus(value.sizes[d], -1), value.sizes[d], -1)
    return value


def _diagonal(w: CWriter, node: fx.Node, x: fx.Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    value = w.value(x)
    a, b = axis(dim1, value), axis(dim2, value)
    if offset:
        raise NotExported("it takes a diagonal other than the main one, which C++ has no loop for here")
    left = [d for d in range(len(value.sizes)) if d not in (a, b)]
    whole = _turned(value, [*left, a])
    return Value(value.at, value.kind, w.sizes(node), (*whole.strides[:-1], plus(value.strides[a], value.strides[b])))


def _unfold(w: CWriter, node: fx.Node, x: fx.Node, dim: int, size: int, step: int) -> Value:
    value = w.value(x)
    d = axis(dim, value)
    strides = list(value.strides)
    strides[d] = times(step, strides[d])
    return Value(value.at, value.kind, w.sizes(node), (*strides, value.strides[d]))


def _pad(w: CWriter, node: fx.Node, x: fx.Node, pad: Sequence[int], value: float = 0.0) -> Value:
    given, out = w.value(x), _filled(w, node, value)
    part = out
    for number in range(len(pad) // 2):
        d, around = len(given.sizes) - 1 - number, pad[2 * number : 2 * number + 2]
        if not all(isinstance(size, int) for size in around):
            raise NotExported("it pads by a dynamic size, which C++ has no loop for here")
        left, right = (max(0, -size) for size in around)  # which are cut off
        given = _part(given, d, left, plus(given.sizes[d], -left - right))
        part = _part(part, d, max(0, around[0]), given.sizes[d])
    w.store(part, given)
    return out


# ------------------------------------------------------------------------------------------------ new numbers


def _filled(w: CWriter, node: fx.Node, value: Any) -> Value:
    number = w.number(value, node.meta["val"].dtype)
    return w.each(w.kind(node), w.sizes(node), lambda: number)


def _of_number(value: float) -> Handler:
    return lambda w, node, *_, **__: _filled(w, node, value)


def _full(w: CWriter, node: fx.Node, *args: Any, **_: Any) -> Value:
    return _filled(w, node, args[-1])


def _arange(w: CWriter, node: fx.Node, *args: Any, **_: Any) -> Value:
    dtype = node.meta["val"].dtype
    start, _, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    out = w.new(w.kind(node), w.sizes(node))
    first, apart = w.number(start, dtype), w.number(step, dtype)
    w.loops(out.sizes, lambda at: f"{out.one(at)} = {first} + ({out.kind})({at[0]}) * {apart};")
    return out


TENSORS: dict[str, Handler] = {
    "mm": _mm,
    "bmm": _bmm,
    "addmm": _plus_product(_mm),
    "baddbmm": _plus_product(_bmm),
    "mv": _mv,
    **dict.fromkeys(("t", "transpose"), _transpose),
    "permute": _permute,
    **dict.fromkeys(("view", "_unsafe_view", "squeeze", "unsqueeze"), _view),
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _parted),
    "unbind": _unbind,
    "cat": _cat,
    "flip": _flip,
    "diagonal": _diagonal,
    "unfold": _unfold,
    "constant_pad_nd": _pad,
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like", "empty", "new_empty", "empty_like"), _of_number(0)),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), _of_number(1)),
    **dict.fromkeys(("full", "new_full", "full_like"), _full),
    "arange": _arange,
}
"""What writes each tensor operation, by its PyTorch name."""
