"""One step as a graph of tensor operations: what an engine can hoist out of the loop, and what has to stay in it."""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from everstep.cell import Cell
from everstep.scanning.record import Recorder, Untraceable, kind_of, operation_name, users_line
from everstep.state import leaves, unflatten

_ROWS = (1009, 1013, 1019, 1021)
"""The batch that is traced: a size that no other dimension has."""


@dataclass(frozen=True)
class Operation:
    """One operation of a step.

    Attributes:
        name: PyTorch's name for it.
        kind: "product" (with a matrix), "pointwise", "reduction" (over features) or "view".
        needs: what it depends on, of "x", "state" and "parameters".
        flops: multiplications and additions for each row of the batch; counted for products alone.
    """

    name: str
    kind: str
    needs: frozenset[str]
    flops: int

    @property
    def hoisted(self) -> bool:
        """Whether it can be computed for all steps at once, before the loop."""
        return "state" not in self.needs


@dataclass(frozen=True)
class StepGraph:
    """A traced step of `rows` rows.

    `module(*parameters and buffers, *x leaves, *state leaves)` gives the output and the new state's leaves. A node's
    `meta["val"]` is a tensor on the meta device, or a tuple of them.
    """

    module: fx.GraphModule
    rows: int
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        loop = [o for o in self.operations if not o.hoisted]
        early = sum(o.kind == "product" and o.hoisted and "x" in o.needs for o in self.operations)
        count = {kind: sum(o.kind == kind for o in loop) for kind in ("product", "reduction", "pointwise")}
        flops = sum(o.flops for o in loop)
        inside = ", ".join(f"{number} {kind}" for kind, number in count.items() if number) or "nothing"
        return f"products that need x alone: {early}; operations that need the state: {inside}; {flops:,} FLOP a row"


def trace(cell: Cell, xs: Any, training: bool = False) -> StepGraph:
    """Follow one step of `cell` on tensors without numbers, shaped as one step of `xs` (a nest, (batch, time, …)).

    In eval mode, or, with `training`, in the modes that its modules are in.

    Raises:
        Untraceable: control flow that depends on values, a change in place, random numbers, an unknown operation, or a
            state whose nest, shape or dtype changes.
    """
    with _plainly():
        tensors = {id(t) for t in (*cell.parameters(), *cell.buffers())}
        try:
            # a copy that shares the tensors: the tracer puts others in their places, which no other thread should meet
            found = _trace(_apart(cell), xs, training)
        except Untraceable:
            raise
        except Exception:  # what cannot be copied is traced itself
            return _trace(cell, xs, training)
        outside = [getattr(found.module, n.target) for n in found.module.graph.nodes if n.op == "get_attr"]
        # a function that holds on to the cell itself has read parameters past the copy
        return _trace(cell, xs, training) if any(id(t) in tensors for t in outside) else found


@contextmanager
def _plainly() -> Iterator[None]:
    """With derivatives, so that operations come in basic ones, and with nothing traced kept in autocast's cache."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _apart(cell: Cell) -> Cell:
    """Another cell with the very same tensors."""
    memo: dict[int, Any] = {}
    for module in cell.modules():
        for held in (vars(module), module._parameters, module._buffers):
            memo |= {id(value): value for value in held.values() if isinstance(value, Tensor)}
    return copy.deepcopy(cell, memo)


def _trace(cell: Cell, xs: Any, training: bool) -> StepGraph:
    parts = [leaf for _, leaf in leaves(xs)]
    sizes = {n for leaf in (*parts, *cell.parameters(), *cell.buffers()) for n in leaf.shape}
    rows = next(rows for rows in _ROWS if not any(n and n % rows == 0 for n in sizes))
    xs_leaves = [leaf.new_zeros(rows, *leaf.shape[2:]) for leaf in parts]
    like = xs_leaves[0]
    with torch.no_grad():
        holder = _Step(cell, xs, cell.initial_state(rows, like))
    recorder = Recorder(like.device)
    parameters = [*holder.named_parameters(), *holder.named_buffers()]
    values = {name: recorder.input(f"value{k}", parameter) for k, (name, parameter) in enumerate(parameters)}
    everywhere: dict[str, Tensor] = {name: values[first] for name, first in _places(holder).items()}
    inputs = [recorder.input(f"x{k}", leaf) for k, leaf in enumerate(xs_leaves)]
    state = [recorder.input(f"state{k}", leaf) for k, (_, leaf) in enumerate(leaves(holder.start))]
    try:
        with nullcontext() if training else evaluating(cell), recorder:
            # PyTorch's own tying puts the traced tensor into a module that two names share, and leaves it there
            results = torch.func.functional_call(holder, everywhere, (inputs, state), tie_weights=False)
        module = recorder.finish(results)
    except Untraceable:
        raise
    except Exception as error:  # what a step can do wrong has no common class
        where = users_line((f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)[::-1])
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Untraceable(f"its step cannot be followed{where}: {reason}") from error
    return StepGraph(module, rows, tuple(_operations(module, rows, len(values), len(xs_leaves))))


def _places(module: nn.Module) -> dict[str, str]:
    """Of every place that holds a parameter or buffer, in modules taken once, the first place that holds the same."""
    first: dict[int, str] = {}
    found = {}
    for prefix, inner in module.named_modules():
        for key, tensor in (*inner._parameters.items(), *inner._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{key}" if prefix else key
                found[name] = first.setdefault(id(tensor), name)
    return found


class _Step(nn.Module):
    """`cell.step` on lists of leaves."""

    def __init__(self, cell: Cell, xs: Any, start: Any):
        super().__init__()
        self.cell = cell
        self._xs, self.start = xs, start

    def forward(self, inputs: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        y, new = self.cell.step(unflatten(self._xs, inputs), unflatten(self.start, state))
        starts, ends = leaves(self.start), leaves(new)
        if [name for name, _ in starts] != [name for name, _ in ends]:
            told = [", ".join(repr(name) for name, _ in nest) or "none" for nest in (starts, ends)]
            raise Untraceable(f"its step gets the state leaves {told[0]}, but gives {told[1]}")
        for (name, old), (_, leaf) in zip(starts, ends, strict=True):
            if leaf.shape != old.shape or leaf.dtype != old.dtype:
                told = [f"({', '.join(_size(n, old.shape[0]) for n in s.shape)}) {s.dtype}" for s in (old, leaf)]
                raise Untraceable(f"its step turns state leaf {name!r} from {told[0]} into {told[1]}")
        return [y, *(leaf for _, leaf in ends)]


def _size(size: int, rows: int) -> str:
    return "batch" if size == rows else str(size)


@contextmanager
def evaluating(cell: nn.Module) -> Iterator[None]:
    """`cell` in eval mode within the block, each module's own mode afterwards."""
    modes = [(module, module.training) for module in cell.modules()]
    cell.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _operations(module: fx.GraphModule, rows: int, parameters: int, inputs: int) -> Iterator[Operation]:
    needs: dict[fx.Node, frozenset[str]] = {}
    places = ["parameters"] * parameters + ["x"] * inputs
    for place, node in enumerate(module.graph.nodes):
        if node.op == "placeholder":
            needs[node] = frozenset([places[place] if place < len(places) else "state"])
        elif node.op == "get_attr":
            needs[node] = frozenset(["parameters"])
        elif node.op == "call_function":
            needs[node] = frozenset().union(*(needs[other] for other in node.all_input_nodes))
            yield _operation(node, needs[node], rows)


def _operation(node: fx.Node, needs: frozenset[str], rows: int) -> Operation:
    kind = kind_of(node.target) or "view"  # what is unknown and takes no tensor makes a constant
    if kind != "product":
        return Operation(operation_name(node.target), kind, needs, 0)
    left, _ = [arg for arg in node.args if isinstance(arg, fx.Node)][-2:]
    depth = _shape(left)[-1]
    return Operation(operation_name(node.target), kind, needs, 2 * depth * math.prod(_shape(node)) // rows)


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
