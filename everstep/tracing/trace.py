"""One step as a graph of tensor operations, which shows what can be hoisted out of the loop."""

from __future__ import annotations

import copy
import inspect
import math
import random
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from everstep import hooks
from everstep.abstract import AbstractCell
from everstep.state import leaves, map_state, unflatten
from everstep.tracing.comparison import differing
from everstep.tracing.operations import flattened, kind_of, operation_name
from everstep.tracing.recorder import DRAWN, Functions, Recorder
from everstep.tracing.refusals import Impure, Untraceable, in_words, size_told, users_line
from everstep.tracing.side_effects import Watch

_ROWS = (1009, 1013, 1019, 1021)
"""Batch sizes for tracing. A step is traced with two that no other dimension has, to recognise the batch size."""

_LARGE = 1 << 22
"""Numbers of a state that a trace makes; of a larger one, shapes are enough."""


@dataclass(frozen=True)
class Operation:
    """One operation of a step.

    Attributes:
        name: PyTorch's name for it.
        kind: "product" (with a matrix), "pointwise", "reduction" (over features) or "view".
        needs: its dependencies among "x", "state" and "parameters".
        flops: multiplications and additions per row of the batch; counted for products only.
    """

    name: str
    kind: str
    needs: frozenset[str]
    flops: int

    @property
    def hoisted(self) -> bool:
        """Whether it can be computed for all steps before the loop."""
        return "state" not in self.needs


@dataclass(frozen=True)
class StepGraph:
    """A step traced with `rows` rows.

    `module(*parameters and buffers, *x leaves, *state leaves)` returns the output and the leaves of the new state. For
    `meta` of a node see `Recorder`; `dtype` is that of x; `held` are the indices of state leaves with free sizes, which
    are only read, and `free` is the size used for them in the trace.
    """

    module: fx.GraphModule
    rows: int
    dtype: torch.dtype
    operations: tuple[Operation, ...]
    held: tuple[int, ...] = ()
    free: int = 0

    def __str__(self) -> str:
        loop = [o for o in self.operations if not o.hoisted]
        early = sum(o.kind == "product" and o.hoisted and "x" in o.needs for o in self.operations)
        count = {kind: sum(o.kind == kind for o in loop) for kind in ("product", "reduction", "pointwise")}
        flops = sum(o.flops for o in loop)
        inside = ", ".join(f"{number} {kind}" for kind, number in count.items() if number) or "nothing"
        return f"products that need x alone: {early}; operations that need the state: {inside}; {flops:,} FLOP a row"


def trace(
    cell: AbstractCell, xs: Any, training: bool = False, free: int = 48, as_they_are: Collection[str] = ()
) -> StepGraph:
    """Trace one step of `cell` on tensors without values, shaped like one step of `xs` (a nest, (batch, time, …)).

    Runs in eval mode; with `training`, in the current modes of the modules. Free sizes of the state (`is_free`) are set
    to `free`. `as_they_are` is that of `Recorder`.

    Raises:
        Untraceable: control flow that depends on values, an in-place change of shared data, random numbers, an unknown
            operation, or a state whose nest, shape or dtype changes.
    """
    with _plainly():
        for _ in range(3):  # retried, since another thread may draw meanwhile
            before = _drawn()
            found = _followed(cell, xs, training, free, as_they_are)
            if _drawn() == before:
                return found
        raise Untraceable(f"its step draws random numbers; {DRAWN}")


def _drawn() -> list[object]:
    """The states of the random generators of Python and NumPy."""
    parts = flattened(np.random.get_state(legacy=False))  # noqa: NPY002
    return [random.getstate(), *(part.tobytes() if isinstance(part, np.ndarray) else part for part in parts)]


def is_free(leaf: Tensor) -> bool:
    """Whether a leaf of an initial state has free sizes, which are 0 in a dimension other than the batch."""
    return 0 in leaf.shape[1:]


def _filled(leaf: Tensor, free: int) -> Tensor:
    """The leaf with its free sizes set; without numbers, which may be more than memory holds."""
    sizes = [n or free for n in leaf.shape[1:]]
    return leaf.new_empty(len(leaf), *sizes, device="meta") if is_free(leaf) else leaf


def _followed(cell: AbstractCell, xs: Any, training: bool, free: int, as_they_are: Collection[str]) -> StepGraph:
    tensors = {id(t) for t in (*cell.parameters(), *cell.buffers())}
    try:
        # a copy that shares the tensors, since the tracer replaces them, which other threads must not see
        found = _trace(_apart(cell), xs, training, free, as_they_are)
    except Untraceable:
        raise
    except Exception:  # the cell cannot be copied, so it is traced itself
        return _trace(cell, xs, training, free, as_they_are)
    outside = [getattr(found.module, n.target) for n in found.module.graph.nodes if n.op == "get_attr"]
    # a function that refers to the cell itself has read parameters past the copy
    return _trace(cell, xs, training, free, as_they_are) if any(id(t) in tensors for t in outside) else found


@contextmanager
def _plainly() -> Iterator[None]:
    """Enable gradients, so that operations decompose into basic ones, and disable autocast's cache."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _apart(cell: AbstractCell) -> AbstractCell:
    """A copy of the cell with new modules and containers, but the same tensors."""
    clones: dict[int, nn.Module] = {}

    def clone(module: nn.Module) -> nn.Module:
        if id(module) not in clones:
            made = clones[id(module)] = module.__new__(type(module))
            made.__dict__.update(
                {k: copy.copy(v) if type(v) in (list, dict, set) else v for k, v in vars(module).items()}
            )
            made.__dict__["_modules"] = {k: m if m is None else clone(m) for k, m in module._modules.items()}
            for name in {name for kind in type(module).__mro__ for name in getattr(kind, "__slots__", ())}:
                if name[:2] != "__" and hasattr(module, name):
                    object.__setattr__(made, name, getattr(module, name))
        return clones[id(module)]

    return clone(cell)  # type: ignore[return-value]


def _trace(cell: AbstractCell, xs: Any, training: bool, free: int, as_they_are: Collection[str]) -> StepGraph:
    parts = [leaf for _, leaf in leaves(xs)]
    hooked = next((m for m in cell.modules() if m is not cell and (m._backward_hooks or m._backward_pre_hooks)), None)
    if hooked is not None:
        raise Untraceable(f"its {type(hooked).__name__} has a hook on gradients")
    sizes = {n for leaf in (*parts, *cell.parameters(), *cell.buffers()) for n in leaf.shape}
    rows, others = [rows for rows in _ROWS if not any(n and n % rows == 0 for n in sizes)][:2]
    written: dict[int, Tensor] = {}
    module, counts, held = _recorded(cell, xs, training, rows, written, free, as_they_are)
    other, *_ = _recorded(cell, xs, training, others, written, free, as_they_are)
    node = differing(module, other, rows, others)
    if node is not None:
        line = next((n.meta["line"] for n in (node, *node.users) if "line" in n.meta), "")
        raise Untraceable(
            f"its step computes something else when it is called again with another number of rows{line}; rows do not "
            "meet, and what a step keeps belongs to the state"
        )
    return StepGraph(module, rows, parts[0].dtype, tuple(_operations(module, rows, *counts)), held, free if held else 0)


def _recorded(
    cell: AbstractCell,
    xs: Any,
    training: bool,
    rows: int,
    written: dict[int, Tensor],
    free: int,
    as_they_are: Collection[str],
) -> tuple[fx.GraphModule, tuple[int, int], tuple[int, ...]]:
    """The graph of a step with `rows` rows, its numbers of parameters and x leaves, and the indices of free leaves."""
    xs_leaves = [leaf.new_zeros(rows, *leaf.shape[2:]) for _, leaf in leaves(xs)]
    like = xs_leaves[0]
    with torch.no_grad():
        initial = _started(cell, rows, like)
        holder = _Step(cell, xs, map_state(lambda leaf: _filled(leaf, free), initial) if free else initial)
    recorder = Recorder(like.device, rows, written, as_they_are)
    parameters = [*holder.named_parameters(), *holder.named_buffers()]
    values = {}
    for k, (name, parameter) in enumerate(parameters):
        values[name] = recorder.input(f"value{k}", f"its {name.removeprefix('cell.')!r}", parameter, False)
    everywhere: dict[str, Tensor] = {name: values[first] for name, first in shared_places(holder).items()}
    inputs = [recorder.input(f"x{k}", "x", leaf, True) for k, leaf in enumerate(xs_leaves)]
    state = [
        recorder.input(f"state{k}", f"state leaf {name!r}", leaf, True)
        for k, (name, leaf) in enumerate(leaves(holder.start))
    ]
    try:
        with nullcontext() if training else evaluating(cell), recorder, Functions(recorder):
            # PyTorch's own tying would leave the traced tensor in a module that two names share
            results = torch.func.functional_call(holder, everywhere, (inputs, state), tie_weights=False)
        module = recorder.finish(results)
    except Untraceable:
        raise
    except Exception as error:  # errors in a step have no common class
        recorder.check()
        where = users_line((f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)[::-1])
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Untraceable(f"its step cannot be followed{where}: {in_words(reason, rows)}") from error
    held = tuple(k for k, (_, leaf) in enumerate(leaves(initial)) if is_free(leaf)) if free else ()
    places, ends = [n for n in module.graph.nodes if n.op == "placeholder"], _ends(module)
    for k in held:
        if ends[1 + k] is not places[len(values) + len(xs_leaves) + k]:
            name = leaves(initial)[k][0]
            raise Untraceable(f"its step changes state leaf {name!r}, whose size is free: such a leaf can only be read")
    return module, (len(values), len(xs_leaves)), held


def _started(cell: AbstractCell, rows: int, like: Tensor) -> Any:
    """The initial state; of a large one, such as a matrix for each row, the shapes alone.

    Raises:
        Untraceable: the shape or the dtype of a row depends on the number of rows.
    """
    one = cell.initial_state(1, like)
    large = rows * sum(leaf.numel() for _, leaf in leaves(one)) >= _LARGE
    many = cell.initial_state(2 if large else rows, like)
    kinds = [[(name, tuple(leaf.shape[1:]), leaf.dtype) for name, leaf in leaves(state)] for state in (one, many)]
    if kinds[0] != kinds[1]:
        raise Untraceable("its initial state has rows of other shapes or dtypes for one row than for several")
    return map_state(lambda leaf: leaf.new_empty(rows, *leaf.shape[1:], device="meta"), one) if large else many


def _ends(module: fx.GraphModule) -> Any:
    """The output nodes: the output and the leaves of the new state."""
    return next(n.args[0] for n in module.graph.nodes if n.op == "output")


def shared_places(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor."""
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

    def __init__(self, cell: AbstractCell, xs: Any, start: Any):
        super().__init__()
        self.cell = cell
        self._xs, self.start = xs, start

    def forward(self, inputs: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        watch = Watch(self.cell)
        try:
            with hooks.running(self.cell):  # the cell's own hooks belong to the sequence
                given = self.cell.step(unflatten(self._xs, inputs), unflatten(self.start, state))
        finally:
            written = watch.undo()
        if written is not None:
            where = users_line(written.frames or self._first_line())
            raise Impure(f"its step {written.told}; what it keeps belongs to the state{where}")
        if not isinstance(given, tuple) or len(given) != 2:
            raise self._refusal(f"gives {_told(given)} where an output and the new state are expected")
        y, new = given
        starts, ends = leaves(self.start), leaves(new)
        if [name for name, _ in starts] != [name for name, _ in ends]:
            told = [", ".join(repr(name) for name, _ in nest) or "none" for nest in (starts, ends)]
            raise self._refusal(f"gets the state leaves {told[0]}, but gives {told[1]}")
        for (name, old), (_, leaf) in zip(starts, ends, strict=True):
            if leaf.shape != old.shape or leaf.dtype != old.dtype:
                told = [f"({', '.join(size_told(n, old.shape[0]) for n in s.shape)}) {s.dtype}" for s in (old, leaf)]
                raise self._refusal(f"turns state leaf {name!r} from {told[0]} into {told[1]}")
        rows = len(inputs[0])
        if not isinstance(y, Tensor) or y.shape != (rows, self.cell.output_size):
            came = f"({', '.join(size_told(n, rows) for n in y.shape)})" if isinstance(y, Tensor) else _told(y)
            raise self._refusal(f"gives {came}, but its output_size asks for (batch, {self.cell.output_size})")
        return [y, *(leaf for _, leaf in ends)]

    def _refusal(self, problem: str) -> Untraceable:
        return Untraceable(f"its step {problem}{users_line(self._first_line())}")

    def _first_line(self) -> list[tuple[str, int]]:
        code = getattr(inspect.unwrap(type(self.cell).step), "__code__", None)
        return [(code.co_filename, code.co_firstlineno)] if code else []


def _told(value: Any) -> str:
    return "one tensor" if isinstance(value, Tensor) else type(value).__name__


def _place_told(name: str) -> str:
    return f"its {name.removeprefix('cell.')!r}"


@contextmanager
def evaluating(cell: nn.Module) -> Iterator[None]:
    """Put `cell` into eval mode within the block; each module's mode is restored."""
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
    kind = kind_of(node.target) or "view"  # an unknown operation without tensors gives a constant
    if kind != "product":
        return Operation(operation_name(node.target), kind, needs, 0)
    left, _ = [arg for arg in node.args if isinstance(arg, fx.Node)][-2:]
    depth = _shape(left)[-1]
    return Operation(operation_name(node.target), kind, needs, 2 * depth * math.prod(_shape(node)) // rows)


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
