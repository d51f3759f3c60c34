"""From PyTorch's operations to the graph of a row, and to the part that needs no state and is run before the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from everstep.scanning.fused import products
from everstep.scanning.fused.graph import Builder, Place, Shape, View, broadcast, dense
from everstep.scanning.trace import StepGraph, Untraceable, operation_name


@dataclass(frozen=True)
class Lowered:
    """A step ready for the loop.

    Attributes:
        before: `before(parameters, x leaves, rows)` gives the inputs of every step, then the constants; PyTorch runs
            it, with its own derivatives, over all steps at once.
        inputs: shape of a row of each input.
        constants: shape of each constant: what depends on the parameters alone.
        states: shape of a row of each leaf of the state.
        output, following: y and the new state's leaves.
        builder: which made the nodes.
    """

    before: fx.GraphModule
    inputs: tuple[Shape, ...]
    constants: tuple[Shape, ...]
    states: tuple[Shape, ...]
    output: View
    following: tuple[View, ...]
    builder: Builder


_FAR = 1 << 40
"""A stride that marks the batch."""
_SAME = ("alias", "lift_fresh_copy", "clone")
_VIEWING = (
    *("t", "transpose", "permute", "view", "_unsafe_view", "expand", "squeeze", "unsqueeze", "slice", "select"),
    *("split", "split_with_sizes", "unbind", "diagonal", "chunk"),
)
_FILLS = {"ones_like": 1.0, "zeros_like": 0.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}
_FILLED = {"full_like": 1, "new_full": 2, "full": 1, "scalar_tensor": 0}
_DIRECT = {
    *("neg", "sigmoid", "tanh", "relu", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "log1p", "expm1"),
    *("mul", "div", "maximum", "minimum", "sign", "reciprocal", "floor", "atan"),
}
_COMPARE = {"gt": "gt", "ge": "ge", "lt": "lt", "le": "le", "eq": "eq", "ne": "ne"}
_LOGIC = {"logical_and": "and", "logical_or": "or", "logical_not": "not", "bitwise_and": "and", "bitwise_or": "or"}
_LOGIC |= {"bitwise_not": "not", "bitwise_xor": "ne"}


def lower(step: StepGraph, counts: tuple[int, int, int], hoist: bool = True) -> Lowered:
    """Split and translate a traced step; `counts` are its numbers of parameters, x leaves and state leaves.

    Without `hoist`, products of x are computed in the loop too, as a single step wants them.

    Raises:
        Untraceable: an operation, a shape or a dtype that the compiled loop does not hold.
    """
    return _Lowering(step, counts, hoist).run()


class _Lowering:
    def __init__(self, step: StepGraph, counts: tuple[int, int, int], hoist: bool):
        self.hoist = hoist
        self.graph, self.rows, self.counts = step.module.graph, step.rows, counts
        self.build = Builder()
        self.rowwise: dict[fx.Node, View | tuple[View, ...]] = {}
        self.needs: dict[fx.Node, frozenset[str]] = {}
        self.inputs: list[fx.Node] = []
        self.constants: list[fx.Node] = []
        self.unbiased: dict[fx.Node, fx.Node] = {}
        self.rank = 0

    def run(self) -> Lowered:
        nodes = list(self.graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        kinds = [kind for kind, n in zip(("parameters", "x", "state"), self.counts, strict=True) for _ in range(n)]
        for kind, node in zip(kinds, placeholders, strict=True):
            self.needs[node] = frozenset([kind])
        for node in nodes:
            if node not in self.needs:
                self.needs[node] = frozenset().union(*(self.needs[a] for a in node.all_input_nodes))
        self.early = self._early(nodes)
        state = [n for n, kind in zip(placeholders, kinds, strict=True) if kind == "state"]
        for number, node in enumerate(state):
            self.rowwise[node] = self.build.input("prev", number, self._shape(node))
        (output,) = [n for n in nodes if n.op == "output"]
        wanted = set(output.all_input_nodes)
        for node in reversed(nodes):
            if node in wanted and node not in self.early:
                wanted.update(node.all_input_nodes)
        for node in nodes:
            inside = node in wanted and node.op == "call_function" and node not in self.early
            if inside and self.needs[node] & {"x", "state"}:
                self.rowwise[node] = self._call(node)
        results = [self.value(a) for a in output.args[0]]
        views = [self._fit(v, self._shape(a)) for v, a in zip(results, output.args[0], strict=True)]
        for node, old in zip(views[1:], state, strict=True):
            if node.shape != self._shape(old):
                raise Untraceable(f"a state leaf of shape {self._shape(old)} becomes {node.shape}")
        return Lowered(
            self._before(),
            tuple(self._shape(n) for n in self.inputs),
            tuple(tuple(n.meta["val"].shape) for n in self.constants),
            tuple(self._shape(n) for n in state),
            views[0],
            tuple(views[1:]),
            self.build,
        )

    def _early(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        """What is computed for all steps at once: products of x, what they need, and what the loop cannot do."""
        early: set[fx.Node] = set()
        for node in reversed(nodes):
            free = "state" not in self.needs[node] and "x" in self.needs[node] and node.op == "call_function"
            wanted = any(user in early for user in node.users)
            product = self.hoist and operation_name(node.target) in _PRODUCTS
            if free and (wanted or product or not self._known(node)):
                early.add(node)
        if early and not self.hoist:
            raise Untraceable(
                f"its step uses {operation_name(early.pop().target)}, which the compiled loop does not hold"
            )
        return early

    def _known(self, node: Any) -> bool:
        name = operation_name(node.target)
        return name in _VIEWING or name in _SAME or name in _DIRECT or name in _HANDLERS or name == "getitem"

    def value(self, node: Any) -> Any:
        """A node as the loop sees it."""
        if not isinstance(node, fx.Node):
            return float(node)
        if node in self.rowwise:
            return self.rowwise[node]
        needs = self.needs[node]
        if not needs & {"x", "state"}:
            result: Any = self._constant(node)
        else:
            result = self._input(node)
        self.rowwise[node] = result
        return result

    def operand(self, node: Any) -> View | float:
        """`value` where a pointwise operation reads it: a constant's dimension beside the batch goes."""
        value: View | float | tuple[View, ...] = self.value(node)
        if isinstance(value, tuple):
            raise Untraceable(f"{node} is several tensors")
        constant = isinstance(node, fx.Node) and not self.needs[node] & {"x", "state"}
        if isinstance(value, View) and constant and self._rank(node) == len(value.shape) == self.rank > 0:
            return _without(value, [0])
        return value

    def view(self, node: Any) -> View:
        """`operand`, numbers as literals."""
        value = self.operand(node)
        return value if isinstance(value, View) else self.build.literal(value)

    @staticmethod
    def _rank(node: Any) -> int:
        value = node.meta.get("val")
        return value.dim() if isinstance(value, Tensor) else value[0].dim() if isinstance(value, (tuple, list)) else 0

    def _constant(self, node: Any) -> Any:
        value = node.meta.get("val")
        name = operation_name(node.target) if node.op == "call_function" else ""
        if name in _FILLS or name in _FILLED:
            number = _FILLS[name] if name in _FILLS else node.args[_FILLED[name]]
            shape = tuple(value.shape)
            if shape and shape[0] == self.rows:
                shape = shape[1:]
            return self.build.literal(float(number), shape)
        if not isinstance(value, Tensor):
            raise Untraceable(f"{node} is no tensor")
        if self.rows in value.shape:  # a constant that was spread over the batch: its row is all that counts
            return self._call(node)
        self._check_dtype(node)
        if node not in self.constants:
            self.constants.append(node)
        return self.build.input("const", self.constants.index(node), tuple(value.shape))

    def _input(self, node: Any) -> View:
        """A row of what was computed before the loop. A product's bias is added inside, where it costs nothing."""
        self._check_dtype(node)
        if node.op == "call_function" and operation_name(node.target) == "addmm" and self._plain_addmm(node):
            bias = self.value(node.args[0])
            product = self._register(node)
            self.unbiased[node] = node
            return self.build.apply("add", product, bias)
        return self._register(node)

    def _register(self, node: Any) -> View:
        if node not in self.inputs:
            self.inputs.append(node)
        return self.build.input("x", self.inputs.index(node), self._shape(node))

    def _plain_addmm(self, node: Any) -> bool:
        bias = node.args[0]
        assert isinstance(bias, fx.Node)
        alone = not any(user in self.early for user in node.users)
        return alone and not node.kwargs and not self.needs[bias] & {"x", "state"} and bias.meta["val"].dim() == 1

    def _shape(self, node: Any) -> Shape:
        """The shape of a row."""
        value = node.meta["val"]
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != self.rows:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise Untraceable(f"{node} should have the batch first, but is {came}")
        return tuple(int(n) for n in value.shape[1:])

    def _check_dtype(self, node: Any) -> None:
        if not node.meta["val"].is_floating_point() and node.meta["val"].dtype != torch.bool:
            raise Untraceable(f"{node} is {node.meta['val'].dtype}; the compiled loop holds floating point alone")

    def _fit(self, value: Any, shape: Shape) -> View:
        view = value if isinstance(value, View) else self.build.literal(float(value))
        return broadcast(view, shape) if view.shape != shape else view

    def _call(self, node: Any) -> Any:
        outer, self.rank = self.rank, self._rank(node)
        result = self._translated(node, operation_name(node.target))
        self.rank = outer
        return result

    def _translated(self, node: Any, name: str) -> Any:
        if name == "getitem":
            parts = self.value(node.args[0])
            assert isinstance(parts, tuple)
            return parts[node.args[1]]
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            self._check_dtype(node)
        if name in _SAME or (name == "_to_copy" and value is not None):
            return self.view(node.args[0])
        if name in _VIEWING:
            return self._viewed(node)
        if name in _DIRECT:
            if name == "div" and node.kwargs.get("rounding_mode"):
                raise Untraceable("division that rounds is unknown to the compiled loop")
            return self.build.apply(name, *(self.operand(a) for a in node.args))
        if name in _HANDLERS:
            return _HANDLERS[name](self, node)
        raise Untraceable(f"its step uses {name}, which the compiled loop does not hold")

    def _viewed(self, node: Any) -> View | tuple[View, ...]:
        """Ask PyTorch what the strides become, on a tensor without storage."""
        source = self.view(node.args[0])
        original = node.args[0].meta["val"]
        spread = original.dim() == len(source.shape) + 1
        shape = (self.rows, *source.shape) if spread else source.shape
        strides = (_FAR, *source.place.strides) if spread else source.place.strides
        shadow = torch.empty(1, device="meta").as_strided(shape, strides, source.place.offset)
        name = operation_name(node.target)
        target = torch.ops.aten.view if name == "_unsafe_view" else node.target
        try:
            result = target(shadow, *node.args[1:], **node.kwargs)
        except RuntimeError:
            if name not in ("view", "_unsafe_view"):
                raise
            # a view that needs the numbers in order: put them in order first
            solid = self.build.copy(source)
            shadow = torch.empty(1, device="meta").as_strided(shape, (_FAR, *dense(source.shape)))
            try:
                result = torch.ops.aten.view(shadow, *node.args[1:])
            except RuntimeError:
                raise Untraceable("its step folds the batch into another dimension") from None
            source = solid
        results = result if isinstance(result, (list, tuple)) else [result]
        views = tuple(self._row_of(source, r) for r in results)
        return views if isinstance(result, (list, tuple)) else views[0]

    def _row_of(self, source: View, shadow: Tensor) -> View:
        strides, shape, offset = list(shadow.stride()), list(shadow.shape), int(shadow.storage_offset())
        batch = [d for d, s in enumerate(strides) if s >= _FAR and shape[d] == self.rows]
        if not batch and strides and strides[0] == 0 and shape[0] == self.rows:
            return View(source.node, Place(tuple(shape[1:]), tuple(strides[1:]), offset))
        if not batch:
            return View(source.node, Place(tuple(shape), tuple(strides), offset))
        if batch != [0] or any(s >= _FAR for s in strides[1:]):
            raise Untraceable(f"its step moves the batch to another dimension ({tuple(shape)})")
        return View(source.node, Place(tuple(shape[1:]), tuple(strides[1:]), offset))

    def _before(self) -> fx.GraphModule:
        """The part that PyTorch runs: everything that the inputs and the constants need."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        for node in placeholders[: self.counts[0] + self.counts[1]]:
            copies[node] = graph.placeholder(node.name)
        rows = graph.placeholder("rows")
        wanted = {*self.inputs, *self.constants}
        for node in reversed(self.graph.nodes):
            if node in wanted:
                wanted.update(node.all_input_nodes)

        def argument(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return copies[value]
            if isinstance(value, (list, tuple)):
                return type(value)(argument(v) for v in value)
            if isinstance(value, int) and not isinstance(value, bool) and value >= self.rows:
                if value == self.rows:
                    return rows
                if value % self.rows == 0:
                    raise Untraceable("its step folds the batch into another dimension")
            return value

        for node in self.graph.nodes:
            if node not in wanted or node in copies:
                continue
            if node.op == "get_attr":
                copies[node] = graph.get_attr(node.target)
            elif node in self.unbiased:
                copies[node] = graph.call_function(products.mm, tuple(map(argument, node.args[1:])))
            elif node.target is torch.ops.aten.mm.default:
                copies[node] = graph.call_function(products.mm, tuple(map(argument, node.args)))
            else:
                arguments = tuple(map(argument, node.args))
                keywords = {k: argument(v) for k, v in node.kwargs.items() if k not in ("device", "pin_memory")}
                copies[node] = graph.call_function(node.target, arguments, keywords)
        graph.output([copies[n] for n in (*self.inputs, *self.constants)])
        return fx.GraphModule(self.graph.owning_module or {}, graph)


_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


def _scaled(build: Builder, view: View, scale: Any) -> View:
    return build.apply("mul", view, float(scale)) if scale != 1 else view


def _add(self: _Lowering, node: Any, sign: str = "add") -> View:
    a, b = self.operand(node.args[0]), self.operand(node.args[1])
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return self.build.apply(sign, a, _scaled(self.build, _as_view(self, b), alpha))


def _as_view(self: _Lowering, value: Any) -> View:
    return value if isinstance(value, View) else self.build.literal(value)


def _mm(self: _Lowering, node: Any) -> View:
    return _vector_matrix(self, node.args[0], node.args[1])


def _addmm(self: _Lowering, node: Any) -> View:
    product = _scaled(self.build, _vector_matrix(self, node.args[1], node.args[2]), node.kwargs.get("alpha", 1))
    bias = _scaled(self.build, self.view(node.args[0]), node.kwargs.get("beta", 1))
    return self.build.apply("add", product, bias)


def _vector_matrix(self: _Lowering, left: Any, right: Any) -> View:
    vector, matrix = self.view(left), self.value(right)
    if not isinstance(matrix, View) or matrix.node.op != "input" or matrix.node.key[0] != "const":
        raise Untraceable("its step multiplies two matrices of which neither is a parameter alone")
    return self.build.product(vector, matrix.node.key[1], matrix.shape[1])


def _bmm(self: _Lowering, node: Any) -> View:
    """Row by row, (n, k) · (k, m): products of numbers, summed."""
    left, right = self.view(node.args[0]), self.view(node.args[1])
    (n, k), m = left.shape, right.shape[1]
    a, b = left.place.strides, right.place.strides
    spread_a = View(left.node, Place((n, m, k), (a[0], 0, a[1]), left.place.offset))
    spread_b = View(right.node, Place((n, m, k), (0, b[1], b[0]), right.place.offset))
    return _without(self.build.total(self.build.apply("mul", spread_a, spread_b), [2]), [2])


def _mv(self: _Lowering, node: Any) -> View:
    total = self.build.apply("mul", self.view(node.args[0]), self.view(node.args[1]))
    return _without(self.build.total(total, [0]), [0])


def _without(view: View, dims: Sequence[int]) -> View:
    kept = [d for d in range(len(view.shape)) if d not in dims]
    place = view.place
    return View(
        view.node, Place(tuple(place.shape[d] for d in kept), tuple(place.strides[d] for d in kept), place.offset)
    )


def _dims(node: Any, view: View, given: Any) -> list[int]:
    """Which of the row's dimensions are reduced."""
    if given is None or given == []:
        raise Untraceable(f"its step reduces over the batch by {operation_name(node.target)}")
    rank = len(view.shape) + 1
    dims = [d % rank for d in (given if isinstance(given, (list, tuple)) else [given])]
    if 0 in dims:
        raise Untraceable(f"its step reduces over the batch by {operation_name(node.target)}")
    return [d - 1 for d in dims]


def _keep(node: Any, place: int) -> bool:
    return bool(node.kwargs.get("keepdim", node.args[place] if len(node.args) > place else False))


def _sum(self: _Lowering, node: Any, op: str = "sum", mean: bool = False) -> View:
    view = self.view(node.args[0])
    dims = _dims(node, view, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"))
    total = self.build.total(view, dims, op)
    if mean:
        total = self.build.apply("mul", total, 1 / math.prod(view.shape[d] for d in dims))
    return total if _keep(node, 2) else _without(total, dims)


def _moments(build: Builder, view: View, dims: Sequence[int], less: float) -> tuple[View, View, View]:
    """Deviations, mean and variance (over n − `less`)."""
    count = math.prod(view.shape[d] for d in dims)
    mean = build.apply("mul", build.total(view, dims), 1 / count)
    deviation = build.apply("sub", view, mean)
    total = build.total(build.apply("mul", deviation, deviation), dims)
    return deviation, mean, build.apply("mul", total, 1 / max(count - less, 0) if count > less else math.nan)


def _correction(node: Any) -> float:
    if "correction" in node.kwargs:
        given = node.kwargs["correction"]
        return 1.0 if given is None else float(given)
    return 1.0 if len(node.args) < 3 or node.args[2] else 0.0


def _var(self: _Lowering, node: Any) -> View:
    view = self.view(node.args[0])
    dims = _dims(node, view, node.args[1])
    result = _moments(self.build, view, dims, _correction(node))[2]
    return result if node.kwargs.get("keepdim", False) else _without(result, dims)


def _var_mean(self: _Lowering, node: Any) -> tuple[View, ...]:
    view = self.view(node.args[0])
    dims = _dims(node, view, node.args[1])
    _, mean, variance = _moments(self.build, view, dims, _correction(node))
    pair = (variance, mean)
    return pair if node.kwargs.get("keepdim", False) else tuple(_without(v, dims) for v in pair)


def _layer_norm(self: _Lowering, node: Any) -> tuple[View, ...]:
    source, normalised, weight, bias, eps = node.args
    view = self.view(source)
    rank = len(normalised)
    dims = range(len(view.shape) - rank, len(view.shape))
    deviation, mean, variance = _moments(self.build, view, dims, 0)
    scale = self.build.apply("rsqrt", self.build.apply("add", variance, float(eps)))
    result = self.build.apply("mul", deviation, scale)
    if weight is not None:
        result = self.build.apply("mul", result, self.view(weight))
    if bias is not None:
        result = self.build.apply("add", result, self.view(bias))
    return result, mean, scale


def _softmax(self: _Lowering, node: Any, log: bool = False) -> View:
    view = self.view(node.args[0])
    dims = _dims(node, view, node.args[1])
    shifted = self.build.apply("sub", view, self.build.total(view, dims, "amax"))
    powers = self.build.apply("exp", shifted)
    total = self.build.total(powers, dims)
    return (
        self.build.apply("sub", shifted, self.build.apply("log", total))
        if log
        else self.build.apply("div", powers, total)
    )


def _cat(self: _Lowering, node: Any, stack: bool = False) -> View:
    tensors: Any = node.args[0]
    shape = self._shape(node)
    axis = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % (len(shape) + 1) - 1
    if axis < 0:
        raise Untraceable("its step joins along the batch")
    strides, start, parts = dense(shape), 0, []
    for tensor in tensors:
        view = self.view(tensor)
        part = self._shape(tensor)
        view = broadcast(view, part)
        if stack:
            kept = tuple(s for d, s in enumerate(strides) if d != axis)
            parts.append((Place(part, kept, start * strides[axis]), view))
            start += 1
        else:
            parts.append((Place(part, strides, start * strides[axis]), view))
            start += part[axis]
    return self.build.scatter(shape, parts)


def _where(self: _Lowering, node: Any) -> View:
    return self.build.apply("where", *(self.view(a) for a in node.args))


def _clamp(self: _Lowering, node: Any) -> View:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    view = self.view(node.args[0])
    for op, bound in (("clamp_min", low), ("clamp_max", high)):
        if isinstance(bound, fx.Node):
            raise Untraceable("its step clamps by a tensor; use torch.maximum and torch.minimum")
        if bound is not None:
            view = self.build.apply(op, view, float(bound))
    return view


def _clamp_max(self: _Lowering, node: Any) -> View:
    return self.build.apply("clamp_max", self.view(node.args[0]), float(node.args[1]))


def _pow(self: _Lowering, node: Any) -> View:
    base, power = self.operand(node.args[0]), node.args[1]
    if isinstance(power, fx.Node):
        return self.build.apply("pow", base, self.view(power))
    view = _as_view(self, base)
    if power == 2:
        return self.build.apply("mul", view, view)
    if power == 3:
        return self.build.apply("mul", self.build.apply("mul", view, view), view)
    if power == 0.5:
        return self.build.apply("sqrt", view)
    if power == -1:
        return self.build.apply("reciprocal", view)
    return self.build.apply("pow", view, float(power))


def _silu(self: _Lowering, node: Any) -> View:
    view = self.view(node.args[0])
    return self.build.apply("mul", view, self.build.apply("sigmoid", view))


def _softplus(self: _Lowering, node: Any) -> View:
    beta = float(node.args[1]) if len(node.args) > 1 else 1.0
    threshold = float(node.args[2]) if len(node.args) > 2 else 20.0
    view = self.view(node.args[0])
    scaled = self.build.apply("mul", view, beta)
    # exp of what is kept alone, so that the branch not taken overflows into no gradient
    bounded = self.build.apply("clamp_max", scaled, threshold)
    soft = self.build.apply("div", self.build.apply("log1p", self.build.apply("exp", bounded)), beta)
    return self.build.apply("where", self.build.apply("gt", scaled, threshold), view, soft)


def _log_sigmoid(self: _Lowering, node: Any) -> View | tuple[View, ...]:
    view = self.view(node.args[0])
    small = self.build.apply("exp", self.build.apply("neg", self.build.apply("abs", view)))
    result = self.build.apply("sub", self.build.apply("minimum", view, 0.0), self.build.apply("log1p", small))
    return (result, small)


def _elu(self: _Lowering, node: Any) -> View:
    alpha, scale, inner = (float(a) for a in (*node.args[1:], *(1.0, 1.0, 1.0)[len(node.args) - 1 :]))
    view = self.view(node.args[0])
    below = self.build.apply("mul", self.build.apply("clamp_max", view, 0.0), inner)
    curve = self.build.apply("mul", self.build.apply("expm1", below), alpha * scale)
    return self.build.apply("where", self.build.apply("gt", view, 0.0), _scaled(self.build, view, scale), curve)


def _leaky_relu(self: _Lowering, node: Any) -> View:
    slope = float(node.args[1]) if len(node.args) > 1 else 0.01
    view = self.view(node.args[0])
    return self.build.apply("where", self.build.apply("gt", view, 0.0), view, self.build.apply("mul", view, slope))


def _prelu(self: _Lowering, node: Any) -> View:
    view = self.view(node.args[0])
    slope = self.view(node.args[1])
    if slope.shape and len(slope.shape) > len(view.shape):
        slope = _without(slope, range(len(slope.shape) - len(view.shape)))
    return self.build.apply("where", self.build.apply("gt", view, 0.0), view, self.build.apply("mul", view, slope))


def _between(self: _Lowering, view: View, low: float, high: float) -> View:
    """Kept within bounds; no gradient at the bounds themselves."""
    build = self.build
    below = build.apply("where", build.apply("ge", view, high), high, view)
    return build.apply("where", build.apply("le", view, low), low, below)


def _hardtanh(self: _Lowering, node: Any) -> View:
    low = float(node.args[1]) if len(node.args) > 1 else -1.0
    high = float(node.args[2]) if len(node.args) > 2 else 1.0
    return _between(self, self.view(node.args[0]), low, high)


def _hardsigmoid(self: _Lowering, node: Any) -> View:
    line = self.build.apply("add", self.build.apply("mul", self.view(node.args[0]), 1 / 6), 0.5)
    return _between(self, line, 0.0, 1.0)


def _gelu(self: _Lowering, node: Any) -> View:
    view = self.view(node.args[0])
    build = self.build
    if node.kwargs.get("approximate", "none") == "tanh":
        cube = build.apply("mul", build.apply("mul", view, view), view)
        inner = build.apply("mul", build.apply("add", view, build.apply("mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        curve = build.apply("tanh", inner)
    else:
        curve = build.apply("erf", build.apply("mul", view, math.sqrt(0.5)))
    return build.apply("mul", build.apply("mul", view, 0.5), build.apply("add", curve, 1.0))


def _addcmul(self: _Lowering, node: Any) -> View:
    product = self.build.apply("mul", self.view(node.args[1]), self.view(node.args[2]))
    return self.build.apply("add", self.view(node.args[0]), _scaled(self.build, product, node.kwargs.get("value", 1)))


def _lerp(self: _Lowering, node: Any) -> View:
    start, end, weight = self.view(node.args[0]), self.view(node.args[1]), self.operand(node.args[2])
    return self.build.apply("add", start, self.build.apply("mul", self.build.apply("sub", end, start), weight))


def _compare(self: _Lowering, node: Any) -> View:
    name = operation_name(node.target)
    return self.build.apply({**_COMPARE, **_LOGIC}[name], *(self.operand(a) for a in node.args))


def _fill(self: _Lowering, node: Any) -> View:
    name = operation_name(node.target)
    number = _FILLS[name] if name in _FILLS else node.args[_FILLED[name]]
    return self.build.literal(float(number), self._shape(node))


_HANDLERS: dict[str, Callable[[_Lowering, fx.Node], Any]] = {
    "add": _add,
    "sub": lambda self, node: _add(self, node, "sub"),
    "rsub": lambda self, node: _rsub(self, node),
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "mv": _mv,
    "sum": _sum,
    "mean": lambda self, node: _sum(self, node, mean=True),
    "amax": lambda self, node: _sum(self, node, "amax"),
    "amin": lambda self, node: self.build.apply("neg", _negated_max(self, node)),
    "var": _var,
    "var_mean": _var_mean,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax,
    "_log_softmax": lambda self, node: _softmax(self, node, log=True),
    "cat": _cat,
    "stack": lambda self, node: _cat(self, node, stack=True),
    "detach": lambda self, node: self.build.stop(self.view(node.args[0])),
    "where": _where,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda self, node: _clamp_max(self, node),
    "pow": _pow,
    "silu": _silu,
    "softplus": _softplus,
    "log_sigmoid_forward": _log_sigmoid,
    "elu": _elu,
    "leaky_relu": _leaky_relu,
    "_prelu_kernel": _prelu,
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "gelu": _gelu,
    "addcmul": _addcmul,
    "lerp": _lerp,
    **dict.fromkeys((*_COMPARE, *_LOGIC), _compare),
    **dict.fromkeys((*_FILLS, *_FILLED), _fill),
}


def _rsub(self: _Lowering, node: Any) -> View:
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return self.build.apply("sub", self.operand(node.args[1]), _scaled(self.build, self.view(node.args[0]), alpha))


def _negated_max(self: _Lowering, node: Any) -> View:
    view = self.build.apply("neg", self.view(node.args[0]))
    dims = _dims(node, view, node.args[1] if len(node.args) > 1 else None)
    total = self.build.total(view, dims, "amax")
    return total if _keep(node, 2) else _without(total, dims)
