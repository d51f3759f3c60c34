"""Cells described as data, a small tree of operations, so that a program can generate, store and run them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.cells.parametric import Parametric
from everstep.state import State

Expression: TypeAlias = "str | tuple[Any, ...]"

UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "sin": torch.sin,
    "identity": lambda a: a,
}
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "max": torch.maximum,
}
LEAVES = ("x", "h", "c")
DEEPEST = 100


class TreeState(NamedTuple):
    """The output h and the memory c, each (batch, H)."""

    h: Tensor
    c: Tensor


class ExpressionCell(Parametric):
    """A cell computed by a tree, as architecture search writes them (Zoph & Le 2017, "Neural architecture search …").

    The tree's value is h_t, the output. A node is one of

    - `"x"`: W x_t + b, and `"h"`: V h_{t-1} + b', with separate matrices for each occurrence;
    - `"c"`: the memory c_{t-1} itself;
    - `(name, a)`: tanh, sigmoid, relu, sin or identity of the node a;
    - `(name, a, b)`: add, sub, mul or max of the nodes a and b;
    - `("cell", a)`: the value of a, which is also the new memory c_t; once if the tree reads `"c"`, otherwise never.

    Lists are accepted for tuples, so that a tree can come from JSON; `cell.tree` is the tree in tuples.

    >>> import json
    >>> tree = ("tanh", ("cell", ("add", ("mul", ("sigmoid", ("add", "x", "h")), "c"), ("tanh", "x"))))
    >>> ys, (h, c) = ExpressionCell(3, 5, json.loads(json.dumps(tree)))(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t, and H of h_t and c_t.
        tree: as above.
        **how: bias, device, dtype.

    Parameters, with n_x and n_h the numbers of those leaves, in the order in which the tree is written: `weight_ih`
    (n_x·H, D), `weight_hh` (n_h·H, H), `bias_ih` (n_x·H), `bias_hh` (n_h·H).

    Known limit: a tree of your own may grow without bound over time; those of `random_tree` do not.

    Raises:
        ValueError: an invalid tree (the message says where); one that never reads x, or reads neither h nor c.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, tree: Any, **how: Any):
        super().__init__(input_size, hidden_size)
        self.tree = _checked(tree)
        words = list(_words(self.tree))
        self.reads_h, self.has_memory = "h" in words, "cell" in words
        counts = {"i": (words.count("x"), input_size), "h": (words.count("h"), hidden_size)}
        shapes: dict[str, tuple[int, ...]] = {}
        for letter, (number, columns) in counts.items():
            if number:
                shapes[f"weight_{letter}h"] = (number * hidden_size, columns)
                shapes[f"bias_{letter}h"] = (number * hidden_size,)
        self.declare(shapes, **how)

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """The leaves of the tree as they are written: x1, x2, …, and h1, h2, …."""
        words = list(_words(self.tree))
        x, h = (tuple(f"{word}{place}" for place in range(1, words.count(word) + 1)) for word in "xh")
        return {"weight_ih": x, "bias_ih": x, "weight_hh": h, "bias_hh": h}

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros: h, and c if the tree reads it."""
        zeros = like.new_zeros(batch, self.hidden_size)
        return TreeState(zeros, torch.zeros_like(zeros)) if self.has_memory else zeros

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The tree."""
        h, c = state if self.has_memory else (state, None)
        rows = {"x": iter(F.linear(x, self.weight_ih, self.bias_ih).split(self.hidden_size, -1))}
        if self.reads_h:
            rows["h"] = iter(F.linear(h, self.weight_hh, self.bias_hh).split(self.hidden_size, -1))
        memory: list[Tensor] = []

        def value(node: Expression) -> Any:
            if isinstance(node, str):
                return c if node == "c" else next(rows[node])
            values = [value(child) for child in node[1:]]
            if node[0] == "cell":
                memory.extend(values)
                return values[0]
            return UNARY[node[0]](*values) if len(values) == 1 else BINARY[node[0]](*values)

        y = value(self.tree)
        return y, TreeState(y, memory[0]) if self.has_memory else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.tree}"


def random_tree(
    seed: int,
    *,
    leaves: int = 8,
    combine: Sequence[str] = ("add", "mul"),
    activations: Sequence[str] = ("tanh", "sigmoid", "relu", "identity"),
    memory: bool = True,
) -> Expression:
    """A random tree as in Zoph & Le 2017, determined by the seed.

    Every leaf is φ(x ⊙ h), with ⊙ drawn from `combine` and φ from `activations`; neighbours are joined in the same way,
    level by level, until one node is left. With `memory`, one node n becomes φ(n ⊙ c), and the value of one joint
    before its φ becomes the new c. To keep training stable, the φ of the root is tanh, and the φ where c enters is tanh
    or sigmoid: the state is then bounded if x is, whatever else is drawn.

    >>> cell = ExpressionCell(3, 5, random_tree(0))

    Args:
        seed: of the draw.
        leaves: the base number, at least 2.
        combine: names of `BINARY` to draw from.
        activations: names of `UNARY` to draw from.
        memory: whether the cell has a c.

    Raises:
        ValueError: fewer than 2 leaves, or an unknown name.
    """
    if isinstance(leaves, bool) or not isinstance(leaves, int) or leaves < 2:
        raise ValueError(f"random_tree: leaves should be a whole number of at least 2, but is {leaves!r}")
    for name, given, known in (("combine", combine, BINARY), ("activations", activations, UNARY)):
        if not given or set(given) - known.keys():
            raise ValueError(f"random_tree: {name} should be some of {', '.join(known)}, but is {list(given)}")
    draw = random.Random(seed)
    enters = draw.randrange(2 * leaves - 2) if memory else None  # a node below the root, in the order of drawing
    leaves_out = draw.randrange(leaves - 1) if memory else None  # a joint, likewise
    drawn = 0

    def inject(node: Expression) -> Expression:
        nonlocal drawn
        drawn += 1
        return (draw.choice(("tanh", "sigmoid")), (draw.choice(combine), node, "c")) if drawn - 1 == enters else node

    level = [inject((draw.choice(activations), (draw.choice(combine), "x", "h"))) for _ in range(leaves)]
    joints = 0
    while len(level) > 1:
        above: list[Expression] = []
        for left, right in zip(level[0::2], level[1::2], strict=False):
            joint: Expression = (draw.choice(combine), left, right)
            joint = ("cell", joint) if joints == leaves_out else joint
            joints += 1
            root = joints == leaves - 1
            above.append(("tanh", joint) if root else inject((draw.choice(activations), joint)))
        level = above + level[2 * len(above) :]
    return level[0]


def _words(node: Expression) -> Iterator[str]:
    """Every name in a tree, in written order."""
    if isinstance(node, str):
        yield node
    else:
        for part in node:
            yield from _words(part)


def _checked(tree: Any) -> Expression:
    """The tree in tuples, if it is valid."""
    found = _node(tree, "tree", 0)
    words = list(_words(found))
    if "x" not in words:
        raise ValueError("ExpressionCell: the tree should read x somewhere, but does not")
    if "h" not in words and "c" not in words:
        raise ValueError("ExpressionCell: the tree should read h or c, but reads neither: it would remember nothing")
    expected = 1 if "c" in words else 0
    if words.count("cell") != expected:
        reads = "reads c" if expected else "does not read c"
        raise ValueError(
            f"ExpressionCell: a tree that {reads} should have {expected} cell nodes, but has {words.count('cell')}"
        )
    return found


def _node(node: Any, where: str, depth: int) -> Expression:
    if isinstance(node, str):
        if node not in LEAVES:
            raise ValueError(f"ExpressionCell: {where} should be a leaf, one of x, h, c, or a node, but is {node!r}")
        return node
    if not isinstance(node, list | tuple) or not node or not isinstance(node[0], str):
        raise ValueError(f"ExpressionCell: {where} should be x, h, c or [name, node, …], but is {node!r}")
    if depth == DEEPEST:
        raise ValueError(f"ExpressionCell: the tree should be no deeper than {DEEPEST}, but goes on at {where}")
    name, children = node[0], node[1:]
    arity = 1 if name in UNARY or name == "cell" else 2 if name in BINARY else None
    if arity is None:
        known = ", ".join([*UNARY, *BINARY, "cell"])
        raise ValueError(f"ExpressionCell: {where}[0] should be one of {known}, but is {name!r}")
    if len(children) != arity:
        raise ValueError(
            f"ExpressionCell: {where} ({name}) should have {arity} nodes below it, but has {len(children)}"
        )
    return (name, *(_node(child, f"{where}[{place}]", depth + 1) for place, child in enumerate(children, 1)))
