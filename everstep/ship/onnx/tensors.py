"""Write tensor operations as ONNX nodes: products, reductions, views, indexing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from everstep.ship.onnx.graph import Graph, info
from everstep.ship.onnx.node_writer import Writer, axis
from everstep.ship.sizes import NotExported, Size
from everstep.tracing.operations import operation_name

Handler = Callable[..., Any]
_END = 1 << 62


def _mm(w: Writer, node: fx.Node, a: fx.Node, b: fx.Node) -> str:
    return str(w.add("MatMul", w.name(a), w.name(b)))


def _addmm(w: Writer, node: fx.Node, bias: fx.Node, a: fx.Node, b: fx.Node, beta: float = 1, alpha: float = 1) -> str:
    if beta == 1 and alpha == 1:
        return str(w.add("Add", _mm(w, node, a, b), w.name(bias)))
    dtype = w.dtype(node)
    product = w.add("Mul", _mm(w, node, a, b), w.number(alpha, dtype))
    return str(w.add("Add", product, w.add("Mul", w.name(bias), w.number(beta, dtype))))


def _mv(w: Writer, node: fx.Node, matrix: fx.Node, vector: fx.Node) -> str:
    return str(w.add("MatMul", w.name(matrix), w.name(vector)))


def _convolution(
    w: Writer,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> str:
    if transposed:
        raise NotExported("it uses a transposed convolution")
    how: dict[str, Any] = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    more = [] if bias is None else [w.name(bias)]
    return str(w.add("Conv", w.name(x), w.name(weight), *more, **how))


def _dims(x: fx.Node, dim: Any) -> list[int]:
    rank = len(x.meta["val"].shape)
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(rank))
    return [axis(d, rank) for d in ([dim] if isinstance(dim, int) else dim)]


def _reduced(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> str:
        dims = w.ints(_dims(x, dim))
        if w.rank(x) == 0:
            return w.like(x, w.dtype(node))
        return str(w.add(operation, w.like(x, w.dtype(node)), dims, keepdims=int(keepdim)))

    return write


def _any(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False) -> str:
        numbers = w.like(x, torch.int32) if w.dtype(x) == torch.bool else w.cast(w.like(x, torch.bool), torch.int32)
        return w.cast(w.add(operation, numbers, w.ints(_dims(x, dim)), keepdims=int(keepdim)), torch.bool)

    return write


def _moments(w: Writer, x: fx.Node, dim: Any, correction: float, keepdim: bool) -> tuple[str, str]:
    """The names of the variance and the mean."""
    dims, dtype, sizes = _dims(x, dim), w.dtype(x), w.shape(x)
    mean = w.add("ReduceMean", w.name(x), w.ints(dims), keepdims=1)
    apart = w.add("Sub", w.name(x), mean)
    total = w.add("ReduceSum", w.add("Mul", apart, apart), w.ints(dims), keepdims=int(keepdim))
    count = 1
    for dim in dims:
        if isinstance(sizes[dim], Size):
            raise NotExported("it computes a variance over a dynamic size")
        count *= sizes[dim]
    variance = w.add("Div", total, w.number(max(count - correction, 0), dtype))
    return variance, mean if keepdim else w.add("Squeeze", mean, w.ints(dims))


def _var(w: Writer, node: fx.Node, x: fx.Node, dim: Any = None, correction: Any = None, keepdim: bool = False) -> str:
    return _moments(w, x, dim, 1 if correction is None else correction, keepdim)[0]


def _var_mean(
    w: Writer, node: fx.Node, x: fx.Node, dim: Any = None, correction: Any = None, keepdim: bool = False
) -> list[str]:
    return list(_moments(w, x, dim, 1 if correction is None else correction, keepdim))


def _layer_norm(
    w: Writer, node: fx.Node, x: fx.Node, shape: list[int], weight: fx.Node | None, bias: fx.Node | None, eps: float
) -> list[str]:
    scale = w.graph.constant(torch.ones(shape)) if weight is None else w.name(weight)
    more = [] if bias is None else [w.name(bias)]
    first = w.rank(x) - len(shape)
    return [w.add("LayerNormalization", w.name(x), scale, *more, axis=first, epsilon=eps), "", ""]


def _softmax(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, x: fx.Node, dim: int, half: bool = False) -> str:
        return str(w.add(operation, w.name(x), axis=axis(dim, w.rank(x))))

    return write


def _arg(operation: str) -> Handler:
    def write(w: Writer, node: fx.Node, x: fx.Node, dim: int | None = None, keepdim: bool = False) -> str:
        if dim is None:
            raise NotExported(f"it uses {operation} without a dimension")
        numbers = w.like(x, torch.int32) if w.dtype(x) == torch.bool else w.name(x)
        return str(w.add(operation, numbers, axis=axis(dim, w.rank(x)), keepdims=int(keepdim)))

    return write


def _cumsum(w: Writer, node: fx.Node, x: fx.Node, dim: int, dtype: Any = None) -> str:
    return str(w.add("CumSum", w.like(x, w.dtype(node)), w.number(axis(dim, w.rank(x)), torch.int64)))


def _same(w: Writer, node: fx.Node, x: fx.Node, **_: Any) -> str:
    return w.like(x, w.dtype(node))


def _turned(w: Writer, x: fx.Node, order: Sequence[int]) -> str:
    if list(order) == list(range(w.rank(x))):
        return w.name(x)
    return str(w.add("Transpose", w.name(x), perm=list(order)))


def _transpose(w: Writer, node: fx.Node, x: fx.Node, first: int = 0, second: int = 1) -> str:
    order = list(range(w.rank(x)))
    if len(order) > 1:
        order[first], order[second] = order[second], order[first]
    return _turned(w, x, order)


def _permute(w: Writer, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> str:
    return _turned(w, x, [axis(d, w.rank(x)) for d in dims])


def reshaped(w: Writer, name: str, sizes: Sequence[int | Size]) -> str:
    """Reshape a value. If exactly one size is dynamic, ONNX infers it (−1)."""
    open_ended = sum(isinstance(n, Size) for n in sizes) == 1 and 0 not in sizes
    told = w.ints([-1 if open_ended and isinstance(n, Size) else n for n in sizes])
    return str(w.add("Reshape", name, told, allowzero=1))


def _view(w: Writer, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> str:
    return reshaped(w, w.name(x), w.shape(node))


def _expand(w: Writer, node: fx.Node, x: fx.Node, sizes: Sequence[Any], implicit: bool = False) -> str:
    return str(w.add("Expand", w.name(x), w.ints([1 if n == -1 else n for n in sizes])))


def _slice(
    w: Writer, node: fx.Node, x: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    start, end = 0 if start is None else start, _END if end is None else end
    if start == 0 and step == 1 and isinstance(end, int) and end >= _END:
        return w.name(x)
    end = min(end, _END) if isinstance(end, int) else end
    return str(
        w.add("Slice", w.name(x), w.ints([start]), w.ints([end]), w.ints([axis(dim, w.rank(x))]), w.ints([step]))
    )


def _select(w: Writer, node: fx.Node, x: fx.Node, dim: int, index: Any) -> str:
    return str(w.add("Gather", w.name(x), w.like(index, torch.int64), axis=axis(dim, w.rank(x))))


def _parted(w: Writer, node: fx.Node, x: fx.Node, sizes: Any, dim: int = 0) -> list[str]:
    values = node.meta["val"]
    where = axis(dim, w.rank(x))
    given = [value.shape[where] for value in values]
    if len(given) == 1:
        return [w.name(x)]
    fixed = w.shape(x)[where]
    if isinstance(fixed, Size):
        if fixed.times % len(given) or fixed.plus:
            raise NotExported("it splits a dynamic size into unequal parts")
        return list(w.add("Split", w.name(x), outputs=len(given), axis=where, num_outputs=len(given)))
    return list(w.add("Split", w.name(x), w.ints(given), outputs=len(given), axis=where))


def _unbind(w: Writer, node: fx.Node, x: fx.Node, dim: int = 0) -> list[str]:
    return [_select(w, node, x, dim, place) for place in range(len(node.meta["val"]))]


def _cat(w: Writer, node: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> str:
    where = axis(dim, w.rank(node))
    # as torch does, leave out what is empty, also of one dimension beside others of more
    there = [one for one in tensors if w.rank(one) == w.rank(node) and w.shape(one)[where] != 0] or tensors[:1]
    names = [w.like(one, w.dtype(node)) for one in there]
    return names[0] if len(names) == 1 else str(w.add("Concat", *names, axis=where))


def _flip(w: Writer, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> str:
    many = len(dims)
    places = w.ints([axis(d, w.rank(x)) for d in dims])
    return str(w.add("Slice", w.name(x), w.ints([-1] * many), w.ints([-_END] * many), places, w.ints([-1] * many)))


def _diagonal(w: Writer, node: fx.Node, x: fx.Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    rank = w.rank(x)
    if offset or (axis(dim1, rank), axis(dim2, rank)) != (rank - 2, rank - 1):
        raise NotExported("it takes a diagonal other than the main one of the last two dimensions")
    size = w.shape(x)[-1]
    if isinstance(size, Size):
        raise NotExported("it takes a diagonal of a dynamic size")
    own = w.graph.constant(torch.eye(size, dtype=w.dtype(x)))
    return str(w.add("ReduceSum", w.add("Mul", w.name(x), own), w.ints([rank - 1]), keepdims=0))


def _filled(value: float, at: int = 0) -> Handler:
    """A handler that fills the output with `value`."""

    def write(w: Writer, node: fx.Node, *args: Any, **_: Any) -> str:
        return str(w.add("Expand", w.number(value, w.dtype(node)), w.ints(w.shape(node))))

    return write


def _full(w: Writer, node: fx.Node, *args: Any, **_: Any) -> str:
    return str(w.add("Expand", w.like(args[-1], w.dtype(node)), w.ints(w.shape(node))))


def _arange(w: Writer, node: fx.Node, *args: Any, **_: Any) -> str:
    dtype = w.dtype(node)
    start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    return str(w.add("Range", *(w.like(one, dtype) for one in (start, end, step))))


def _sort(w: Writer, node: fx.Node, x: fx.Node, *at: Any, **how: Any) -> list[str]:
    """Sort by a TopK of all numbers, which puts equal numbers in the order of their indices."""
    dim, descending = [*at, *([how.get("dim", -1), how.get("descending", False)][len(at) :])]
    where = axis(dim, w.rank(x))
    size = w.ints([w.source.shape(x)[where]])
    return list(w.add("TopK", w.name(x), size, outputs=2, axis=where, largest=int(descending)))


def _without_places(node: fx.Node) -> None:
    if any(user.args[1] and user.users for user in node.users):
        raise NotExported(f"it uses the places of {operation_name(node.target)}")


def _cummax(w: Writer, node: fx.Node, x: fx.Node, dim: int) -> list[str]:
    """The largest number so far, by a `Scan`; without the places."""
    _without_places(node)
    where, dtype, sizes = axis(dim, w.rank(x)), w.dtype(x), w.shape(x)
    lowest = -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min
    start = w.add("Expand", w.number(lowest, dtype), w.ints([*sizes[:where], *sizes[where + 1 :]]))
    body = Graph(w.graph)
    before, now, new, most = (body.fresh(name) for name in ("before", "now", "new", "most"))
    found = body.add("Max", before, now)
    body.give(new, found)
    body.give(most, found)
    infos = ([info(name, dtype, None) for name in pair] for pair in ((before, now), (new, most)))
    how = {"num_scan_inputs": 1, "scan_input_axes": [where], "scan_output_axes": [where]}
    _, ys = w.add("Scan", start, w.name(x), outputs=2, body=body.finished("cummax", *infos), **how)
    return [ys, ""]


def _max_pool(
    w: Writer,
    node: fx.Node,
    x: fx.Node,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil: bool = False,
) -> list[str]:
    _without_places(node)
    pads = [*padding, *padding]
    how: dict[str, Any] = {"strides": stride or kernel, "pads": pads, "dilations": dilation, "ceil_mode": int(ceil)}
    return [w.add("MaxPool", w.name(x), kernel_shape=kernel, **how), ""]


def _pad(w: Writer, node: fx.Node, x: fx.Node, pad: Sequence[int], value: float = 0.0) -> str:
    rank = w.rank(x)
    before, after = [0] * rank, [0] * rank
    for number in range(len(pad) // 2):
        before[rank - 1 - number], after[rank - 1 - number] = pad[2 * number], pad[2 * number + 1]
    return str(w.add("Pad", w.name(x), w.ints([*before, *after]), w.number(value, w.dtype(x))))


def _to(w: Writer, node: fx.Node, x: fx.Node, **_: Any) -> str:
    return w.like(x, w.dtype(node))


TENSORS: dict[str, Handler] = {
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "mv": _mv,
    "convolution": _convolution,
    "sum": _reduced("ReduceSum"),
    "mean": _reduced("ReduceMean"),
    "amax": _reduced("ReduceMax"),
    "amin": _reduced("ReduceMin"),
    "any": _any("ReduceMax"),
    "all": _any("ReduceMin"),
    "var": _var,
    "var_mean": _var_mean,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax("Softmax"),
    "_log_softmax": _softmax("LogSoftmax"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "cumsum": _cumsum,
    "cummax": _cummax,
    "max_pool2d_with_indices": _max_pool,
    **dict.fromkeys(("clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh"), _same),
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
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like", "empty", "new_empty", "empty_like"), _filled(0)),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), _filled(1)),
    **dict.fromkeys(("full", "new_full", "full_like"), _full),
    "arange": _arange,
    "sort": _sort,
    "constant_pad_nd": _pad,
}
"""The handlers of tensor operations by PyTorch name."""
