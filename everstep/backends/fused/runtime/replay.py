"""Evaluation of a row graph by PyTorch, operation by operation: slow, but differentiable any number of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from everstep.backends.fused.row_graph import STOP, Node, View, ordered
from everstep.backends.fused.runtime.program import Program
from everstep.backends.fused.runtime.work_layout import Rows

_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    **{
        name: getattr(torch, name)
        for name in ("add", "sub", "mul", "div", "neg", "reciprocal", "sigmoid", "tanh", "exp")
    },
    **{name: getattr(torch, name) for name in ("relu", "abs", "sign", "sqrt", "rsqrt", "maximum", "minimum", "pow")},
    **{name: getattr(torch, name) for name in ("log", "log1p", "expm1", "sin", "cos", "erf", "atan", "floor")},
    "copy": lambda x: x,
    "clamp_min": lambda x, bound: torch.where(x < bound, bound, x),
    "clamp_max": lambda x, bound: torch.where(x > bound, bound, x),
    "where": lambda condition, yes, no: torch.where(condition != 0, yes, no),
    **{
        name: (lambda compare: lambda a, b: compare(a, b).to(a.dtype))(getattr(torch, name))
        for name in ("gt", "ge", "lt", "le", "eq", "ne")
    },
    "and": lambda a, b: ((a != 0) & (b != 0)).to(a.dtype),
    "or": lambda a, b: ((a != 0) | (b != 0)).to(a.dtype),
    "not": lambda a: (a == 0).to(a.dtype),
}


def evaluate(
    views: Sequence[View], inputs: Mapping[tuple[str, int], Tensor], matrices: Callable[[Any], Tensor]
) -> list[Tensor]:
    """The values of `views`, each (batch, …), from inputs by kind and index, and matrices of products by key."""
    like = next(iter(inputs.values()))
    values: dict[int, Tensor] = {}

    def read(view: View) -> Tensor:
        if view.node.op == "literal":
            return torch.full((1, *view.shape), view.node.key, dtype=like.dtype, device=like.device)
        value = values[id(view.node)]
        flat = value.reshape(len(value), view.node.size)
        if view.whole:
            return flat.reshape(len(flat), *view.shape)
        return flat[:, torch.from_numpy(view.place.indices())].reshape(len(flat), *view.shape)

    def compute(node: Node) -> Tensor:
        if node.op == "input":
            value = inputs[node.key]
            return value.reshape(1, *node.shape) if node.key[0] == "const" else value
        arguments = [read(arg) for arg in node.args]
        if node.op == "product":
            operand = arguments[0].reshape(len(arguments[0]), -1)
            return operand @ matrices(node.key)
        if node.op in ("sum", "amax"):
            dims = [d + 1 for d, (a, b) in enumerate(zip(node.over, node.shape, strict=True)) if a != b]
            return getattr(torch, node.op)(arguments[0], dims, keepdim=True)  # type: ignore[no-any-return]
        if node.op == "scatter":
            rows = max(len(a) for a in arguments)
            total = like.new_zeros(rows, math.prod(node.shape))
            for place, part in zip(node.parts, arguments, strict=True):
                where = torch.from_numpy(place.indices())
                total = total.index_add(1, where, part.reshape(len(part), -1).expand(rows, -1))
            return total.view(rows, *node.shape)
        if node.key == STOP:
            return arguments[0].detach()
        return _OPERATIONS[node.op](*arguments)

    for node in ordered(view.node for view in views):
        if node.op != "literal":
            values[id(node)] = compute(node)
    return [read(view) for view in views]


def replay(program: Program, rows: Rows, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and final state of a compiled step over all steps; `tensors` in the order of `Program.split`."""
    xs, constants, state, held, initial = program.split(tensors)
    constants = [c.t() if k in program.outside.transposed else c for k, c in enumerate(constants)]
    factors = program.step.factors
    xs = [x @ constants[factors[k][0]] if k in factors else x for k, x in enumerate(xs)]
    state = list(state)
    pieces: list[Tensor] = []
    places: list[Tensor] = []

    def matrix(key: int) -> Tensor:
        found: Tensor = constants[key]
        return found

    for t in range(int(rows.length.max())):
        live = (rows.length > t).nonzero()[:, 0]
        at = rows.offset[live] + t
        if rows.resets is not None:
            again = rows.resets[at]
            if bool(again.any()):
                who = live[again]
                state = [s.index_copy(0, who, i[who]) for s, i in zip(state, initial, strict=True)]
        inputs = {("x", k): x[at] for k, x in enumerate(xs)} | {("const", k): c for k, c in enumerate(constants)}
        inputs |= {("prev", k): s[live] for k, s in enumerate(state)} | {
            ("held", k): h[live] for k, h in enumerate(held)
        }
        y, *new = evaluate([program.step.output, *program.step.following], inputs, matrix)
        state = [s.index_copy(0, live, n.expand(len(live), *n.shape[1:])) for s, n in zip(state, new, strict=True)]
        pieces.append(y.expand(len(live), *y.shape[1:]))
        places.append(at)
    ys = torch.cat(pieces)
    return [torch.zeros_like(ys).index_copy(0, torch.cat(places), ys), *state]
