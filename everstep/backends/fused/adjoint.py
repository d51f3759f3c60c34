"""The derivative of a step as another row graph: symbolic reverse mode, once per cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from everstep.backends.fused.lowering import Lowered
from everstep.backends.fused.row_graph import (
    CHEAP,
    REDUCTIONS,
    STOP,
    Builder,
    Node,
    Place,
    View,
    broadcast,
    dense,
    ordered,
    whole,
)
from everstep.tracing.refusals import Untraceable

_RECOMPUTE = 10
"""Cost of a saved number in cheap operations; values that cost more are saved, others are recomputed."""
_OFTEN = 16
"""A value read at least this often may be saved in place of what is computed from it."""


@dataclass(frozen=True)
class Product:
    """A product of the step, for the gradient of its weight: Σ over rows and steps of operandᵀ · gradient."""

    matrix: int
    operand: View
    gradient: Node


@dataclass
class Adjoint:
    """One step backward.

    Reads inputs "x", "const", "prev", "held", "next" (the state after the step), "saved", "dy" and "dnext" (the
    gradients of the output and of the new state).

    Attributes:
        previous: gradient of each leaf of the state before the step.
        inputs: gradient of each input, or None.
        constants: gradient of each constant in pointwise operations, to be summed over rows and steps, or None.
        held: gradient of each leaf that is only read, to be summed over steps.
        products: the products, for the gradients of weights.
        saved: values that the forward loop must save, in the order of the "saved" inputs.
        kept: leaves of the state that are needed at every step.
        flat_inputs, flat_constants: those that affect results only through `floor` and the like; their gradient is 0.
        apart: leaves of the state that affect no result, and so have no gradient.
    """

    previous: list[View]
    inputs: dict[int, View]
    constants: dict[int, View]
    held: dict[int, View]
    products: list[Product]
    saved: list[Node] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    flat_inputs: set[int] = field(default_factory=set)
    flat_constants: set[int] = field(default_factory=set)
    apart: set[int] = field(default_factory=set)


def derive(step: Lowered) -> Adjoint:
    """The adjoint of a step.

    Raises:
        Untraceable: an operation has no known derivative.
    """
    return _Derivation(step).run()


class _Derivation:
    def __init__(self, step: Lowered):
        self.step, self.build = step, step.builder
        self.parts: dict[int, list[tuple[Place, View]]] = {}
        self.saved: list[Node] = []
        self.kept: set[int] = set()
        self.flat: set[int] = set()
        """Nodes that affect results, on at least one path through operations with derivative zero."""
        self.flat_matrices: set[int] = set()
        self.again: dict[int, Node] = {}
        self.forward = {id(n) for n in ordered(v.node for v in (step.output, *step.following))}
        self.exact: set[int] = set()
        self.prices: dict[tuple[Node, bool], float] = {}
        self.leaf_after = {id(v.node): k for k, v in reversed(list(enumerate(step.following))) if v.whole}

    def run(self) -> Adjoint:
        step = self.step
        ends = [step.output, *step.following]
        self.contribute(step.output, self.build.input("dy", 0, step.output.shape))
        for number, view in enumerate(step.following):
            self.contribute(view, self.build.input("dnext", number, view.shape))
        products: list[tuple[Node, View]] = []
        gradients: dict[int, View] = {}
        for node in reversed(ordered(v.node for v in ends)):
            if id(node) not in self.parts or node.op == "literal":
                self._flatten(node, id(node) in self.flat)
                continue
            gradient = gradients[id(node)] = self.gradient(node)
            if node.op == "product":
                products.append((node, gradient))
            self._hand_on(node, gradient)

        def of(kind: str, count: int) -> dict[int, View]:
            found = {}
            for number in range(count):
                node = self.build.known.get(("input", *self._key(kind, number)))
                if node is not None and id(node) in gradients:
                    found[number] = self.primal(gradients[id(node)])
                elif node is not None and id(node) in self.flat:
                    flat[kind].add(number)
            return found

        flat: dict[str, set[int]] = {"prev": set(), "x": set(), "const": self.flat_matrices, "held": set()}

        previous = of("prev", len(step.states))
        zeros = [self.build.literal(0.0, shape) for shape in step.states]
        made = [Product(n.key, self._operand(n.args[0]), self.primal(g).node) for n, g in products]
        return Adjoint(
            [previous.get(k, zeros[k]) for k in range(len(step.states))],
            of("x", len(step.inputs)),
            of("const", len(step.constants)),
            of("held", len(step.held)),
            made,
            self.saved,
            self.kept,
            flat["x"],
            flat["const"] | {step.factors[k][0] for k in flat["x"] if k in step.factors},
            {k for k in range(len(step.states)) if k not in previous and k not in flat["prev"]},
        )

    def _hand_on(self, node: Node, gradient: View) -> None:
        """Propagate the gradient of a node, times its derivative, to its arguments."""
        if node.op == "product":
            size = math.prod(node.args[0].shape)
            self.contribute(node.args[0], self.build.product(gradient, (node.key, "transposed"), size))
        elif node.op == "sum":
            self.contribute(node.args[0], broadcast(gradient, node.over))
        elif node.op == "amax":
            self._maximum(node, gradient)
        elif node.op == "scatter":
            for place, arg in zip(node.parts, node.args, strict=True):
                self.contribute(arg, self._reshaped(View(gradient.node, self._within(gradient, place)), arg.shape))
        elif node.op != "input":
            self._pointwise(node, gradient)

    def _flatten(self, node: Node, flat: bool) -> None:
        """Mark the arguments of a node as affecting results with derivative zero, if the node affects results."""
        if not flat or node.op in _UNRELATED or node.key == STOP:
            return
        self.flat.update(id(arg.node) for arg in node.args[node.op == "where" :])
        if node.op == "product":
            self.flat_matrices.add(node.key)

    def _key(self, kind: str, number: int) -> tuple[object, ...]:
        step = self.step
        shapes = {"prev": step.states, "x": step.inputs, "const": step.constants, "held": step.held}
        shape = shapes[kind][number]
        return (shape, (), (kind, number), (), ())

    @staticmethod
    def _within(gradient: View, place: Place) -> Place:
        """The part `place` of a whole gradient (gradients of scatters are whole)."""
        assert gradient.whole
        return place

    def _reshaped(self, view: View, shape: tuple[int, ...]) -> View:
        """The values over a shape that differs only in dimensions of size 1, or else an ordered copy."""
        if view.shape == shape:
            return view
        kept = view.place.reduced()
        if tuple(n for n in shape if n != 1) == kept.shape:
            rest = iter(kept.strides)
            strides = tuple(1 if n == 1 else next(rest) for n in shape)
            return View(view.node, Place(shape, strides, view.place.offset))
        return View(self.build.copy(view).node, Place(shape, dense(shape)))

    def contribute(self, view: View, gradient: View) -> None:
        """Add to the gradient of the node that `view` reads."""
        if view.node.op == "literal" or (gradient.node.op == "literal" and gradient.node.key == 0):
            return
        gradient = broadcast(gradient, view.shape)
        dims = [d for d, (n, s) in enumerate(zip(view.shape, view.place.strides, strict=True)) if s == 0 and n > 1]
        gradient = self.build.total(gradient, dims)
        place = Place(gradient.shape, view.place.strides, view.place.offset)
        self.parts.setdefault(id(view.node), []).append((place, gradient))

    def gradient(self, node: Node) -> View:
        """The sum of all contributions."""
        sums: dict[Place, View] = {}
        for place, view in self.parts[id(node)]:
            place, view = place.reduced(), self._reshaped(view, place.reduced().shape)
            sums[place] = self.build.apply("add", sums[place], view) if place in sums else view
        return self.build.scatter(node.shape, list(sums.items()))

    def _maximum(self, node: Node, gradient: View) -> None:
        """The gradient of a maximum, shared by the elements that attain it, as in PyTorch."""
        view, build = node.args[0], self.build
        at = build.apply("eq", view, broadcast(whole(node), node.over))
        # the mask is computed in the forward loop, since recomputed values may differ in the last bit
        self.exact.add(id(at.node))
        dims = [d for d, (a, b) in enumerate(zip(node.over, node.shape, strict=True)) if a != b]
        share = build.apply("div", gradient, build.total(at, dims))
        self.contribute(view, build.apply("mul", at, share))

    def _pointwise(self, node: Node, gradient: View) -> None:
        if node.op in _FLAT:
            self._flatten(node, True)
        if node.op in _FLAT or node.op in _UNRELATED or node.key == STOP:
            return
        rule = _RULES.get(node.op)
        if rule is None:
            raise Untraceable(f"the compiled loop knows no derivative of {node.op}")
        for arg, part in zip(node.args, rule(self.build, gradient, whole(node), *node.args), strict=True):
            if part is not None and arg.node.op != "literal":
                self.contribute(arg, part)

    # values of the forward step in the backward loop

    def primal(self, view: View) -> View:
        """`view` with every value of the forward step replaced by the one available in the backward loop."""
        return View(self._replace(view.node), view.place)

    def _replace(self, node: Node) -> Node:
        stack = [node]
        while stack:
            top = stack[-1]
            if id(top) not in self.again:
                at_hand = self._at_hand(top)
                if at_hand is None:
                    missing = [a.node for a in top.args if id(a.node) not in self.again]
                    if missing:
                        stack.extend(missing)
                        continue
                    args = [View(self.again[id(a.node)], a.place) for a in top.args]
                    at_hand = self.build.node(top.op, top.shape, args, top.key, top.over, top.parts)
                self.again[id(top)] = at_hand
            stack.pop()
        return self.again[id(node)]

    def _at_hand(self, node: Node) -> Node | None:
        """The value in the backward loop, if it is available without recomputation."""
        if node.op == "input" and node.key[0] == "prev":
            self.kept.add(node.key[1])
        if node.op in ("input", "literal"):
            return node
        if id(node) in self.exact:
            return self._save(node)
        if id(node) not in self.forward:
            return None
        if id(node) in self.leaf_after:
            leaf = self.leaf_after[id(node)]
            self.kept.add(leaf)
            return self.build.input("next", leaf, node.shape).node
        return self._save(node) if self._worth(node) else None

    def _worth(self, node: Node) -> bool:
        """Whether to save a value rather than recompute it; not if it follows cheaply from one worth saving."""
        if self.price(node) <= _RECOMPUTE or self.price(node, spread=True) <= _RECOMPUTE:
            return False
        dear = {id(a.node): a.node for a in node.args if self.price(a.node) > _RECOMPUTE}
        if node.op not in CHEAP or len(dear) != 1:
            return True
        (only,) = dear.values()
        return only.op in ("product", "scatter", *REDUCTIONS) or only.size > node.size

    def _save(self, node: Node) -> Node:
        if node not in self.saved:
            self.saved.append(node)
        return self.build.input("saved", self.saved.index(node), node.shape).node

    def _operand(self, view: View) -> View:
        """The operand of a product as an array over all steps: an input, a leaf of the state, or a saved value."""
        node = view.node
        if node.op == "input":
            if node.key[0] == "prev":
                self.kept.add(node.key[1])
            return view
        return View(self._save(node), view.place)

    def price(self, node: Node, spread: bool = False) -> float:
        """The cost of recomputation in cheap operations; infinite beyond products and reductions.

        With `spread`, values that are broadcast, which have far fewer numbers, are at hand.
        """
        if (node, spread) not in self.prices:
            if node.op in ("input", "literal") or id(node) in self.leaf_after:
                price = 0.0
            elif node.op in ("product", "scatter", *REDUCTIONS):
                price = math.inf
            else:
                beyond = (0.0 if spread and _spread(a) else self.price(a.node, spread) for a in node.args)
                price = sum(beyond) + (1 if node.op in CHEAP else 8)
            self.prices[node, spread] = price
        return self.prices[node, spread]


def _spread(view: View) -> bool:
    """Whether every number is read so often that saving it costs little beside what is computed from it."""
    return math.prod(n for n, s in zip(view.shape, view.place.strides, strict=True) if s == 0) >= _OFTEN


_Rule = Callable[..., tuple[View | None, ...]]
_FLAT = {"sign", "floor"}
"""Operations with derivative zero."""
_UNRELATED = {"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"}
"""Operations without a derivative."""


def _where(b: Builder, g: View, y: View, condition: View, yes: View, no: View) -> tuple[View | None, ...]:
    return None, b.apply("where", condition, g, 0.0), b.apply("where", condition, 0.0, g)


def _extreme(op: str) -> _Rule:
    """The rule of a binary maximum or minimum; equal arguments share the gradient, as in PyTorch."""

    def rule(b: Builder, g: View, y: View, x: View, other: View) -> tuple[View | None, ...]:
        shared = b.apply("where", b.apply("eq", x, other), b.apply("mul", g, 0.5), g)  # NaN: whole to both
        first = b.apply("where", b.apply(op, other, x), 0.0, shared)
        second = b.apply("where", b.apply(op, x, other), 0.0, shared)
        return first, second

    return rule


def _pow(b: Builder, g: View, y: View, x: View, power: View) -> tuple[View | None, ...]:
    lower = b.apply("pow", x, b.apply("sub", power, 1.0))
    by_base = b.apply("mul", g, b.apply("mul", power, lower))
    if power.node.op == "literal":
        return by_base, None
    nothing = b.apply("and", b.apply("eq", x, 0.0), b.apply("ge", power, 0.0))  # 0 · log 0
    by_power = b.apply("where", nothing, 0.0, b.apply("mul", g, b.apply("mul", y, b.apply("log", x))))
    return b.apply("where", b.apply("eq", power, 0.0), 0.0, by_base), by_power


def _mul(b: Builder, *values: View) -> View:
    total = values[0]
    for value in values[1:]:
        total = b.apply("mul", total, value)
    return total


_RULES: dict[str, _Rule] = {
    "copy": lambda b, g, y, x: (g,),
    "add": lambda b, g, y, p, q: (g, g),
    "sub": lambda b, g, y, p, q: (g, b.apply("neg", g)),
    "mul": lambda b, g, y, p, q: (_mul(b, g, q), _mul(b, g, p)),
    "div": lambda b, g, y, p, q: (b.apply("div", g, q), b.apply("neg", b.apply("div", _mul(b, g, y), q))),
    "neg": lambda b, g, y, x: (b.apply("neg", g),),
    "reciprocal": lambda b, g, y, x: (b.apply("neg", _mul(b, g, y, y)),),
    "sigmoid": lambda b, g, y, x: (_mul(b, g, y, b.apply("sub", 1.0, y)),),
    "tanh": lambda b, g, y, x: (_mul(b, g, b.apply("sub", 1.0, _mul(b, y, y))),),
    "relu": lambda b, g, y, x: (b.apply("where", b.apply("le", y, 0.0), 0.0, g),),
    "exp": lambda b, g, y, x: (_mul(b, g, y),),
    "expm1": lambda b, g, y, x: (_mul(b, g, b.apply("add", y, 1.0)),),
    "log": lambda b, g, y, x: (b.apply("div", g, x),),
    "log1p": lambda b, g, y, x: (b.apply("div", g, b.apply("add", x, 1.0)),),
    "sqrt": lambda b, g, y, x: (b.apply("div", _mul(b, g, b.literal(0.5)), y),),
    "rsqrt": lambda b, g, y, x: (_mul(b, g, b.literal(-0.5), y, y, y),),
    "abs": lambda b, g, y, x: (_mul(b, g, b.apply("sign", x)),),
    "sin": lambda b, g, y, x: (_mul(b, g, b.apply("cos", x)),),
    "cos": lambda b, g, y, x: (b.apply("neg", _mul(b, g, b.apply("sin", x))),),
    "erf": lambda b, g, y, x: (
        _mul(b, g, b.apply("exp", b.apply("neg", _mul(b, x, x))), b.literal(2 / math.sqrt(math.pi))),
    ),
    "atan": lambda b, g, y, x: (b.apply("div", g, b.apply("add", _mul(b, x, x), 1.0)),),
    "pow": _pow,
    "where": _where,
    # at the bound itself PyTorch passes the gradient
    "clamp_min": lambda b, g, y, x, bound: (b.apply("where", b.apply("ge", x, bound), g, 0.0), None),
    "clamp_max": lambda b, g, y, x, bound: (b.apply("where", b.apply("le", x, bound), g, 0.0), None),
    "maximum": _extreme("gt"),
    "minimum": _extreme("lt"),
}
