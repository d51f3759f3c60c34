"""One step as a graph of tensor operations: what an engine can hoist out of the loop, and what has to stay in it."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from everstep import equation
from everstep.cell import Cell
from everstep.state import leaves, unflatten

_ROWS = (1009, 1013, 1019, 1021)
"""The batch that is traced: a size that no other dimension has."""
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
_REDUCTIONS = {
    "sum",
    "mean",
    "var",
    "var_mean",
    "amax",
    "amin",
    "prod",
    "native_layer_norm",
    "_softmax",
    "_log_softmax",
}
_VIEWS = {
    *("t", "transpose", "permute", "view", "_unsafe_view", "reshape", "expand", "squeeze", "unsqueeze", "slice"),
    *(
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "diagonal",
        "cat",
        "stack",
        "clone",
        "alias",
        "detach",
        "getitem",
        "_to_copy",
    ),
    *("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full", "lift_fresh_copy"),
}
_EXTRA_POINTWISE = {"_prelu_kernel", "log_sigmoid_forward"}
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    __file__,
    sys.modules[Cell.__module__].__file__ or "",
    equation.__file__,
)


class Untraceable(Exception):
    """A step that cannot be followed; the message says which operation stood in the way, and where."""


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

    `module(parameters, x leaves, state leaves)` gives the output and the new state's leaves.
    """

    module: torch.fx.GraphModule
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
    """Follow one step of `cell` on fake tensors shaped as one step of `xs` (a nest, (batch, time, …)).

    In eval mode, or, with `training`, in the modes that its modules are in.

    Raises:
        Untraceable: control flow that depends on values, a change in place, random numbers, an unknown operation, or a
            state whose nest, shape or dtype changes.
    """
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


def _apart(cell: Cell) -> Cell:
    """Another cell with the very same tensors."""
    memo: dict[int, Any] = {}
    for module in cell.modules():
        for held in (vars(module), module._parameters, module._buffers):
            memo |= {id(value): value for value in held.values() if isinstance(value, Tensor)}
    return copy.deepcopy(cell, memo)


def _trace(cell: Cell, xs: Any, training: bool) -> StepGraph:
    from torch.fx.experimental.proxy_tensor import make_fx

    parts = [leaf for _, leaf in leaves(xs)]
    sizes = {n for leaf in (*parts, *cell.parameters(), *cell.buffers()) for n in leaf.shape}
    rows = next(rows for rows in _ROWS if not any(n and n % rows == 0 for n in sizes))
    xs_leaves = [leaf.new_zeros(rows, *leaf.shape[2:]) for leaf in parts]
    like = xs_leaves[0]
    with torch.no_grad():
        holder = _Step(cell, xs, cell.initial_state(rows, like))
    parameters = {n: p.detach() for n, p in (*holder.named_parameters(), *holder.named_buffers())}
    places = _places(holder)
    start = [leaf.detach() for _, leaf in leaves(holder.start)]

    def run(values: dict[str, Tensor], inputs: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        everywhere = {name: values[first] for name, first in places.items()}
        # PyTorch's own tying puts the traced tensor into a module that two names share, and leaves it there
        return torch.func.functional_call(holder, everywhere, (inputs, state), tie_weights=False)  # type: ignore[no-any-return]

    try:
        with torch.enable_grad(), nullcontext() if training else evaluating(cell), _Guard():
            module = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(parameters, xs_leaves, start)
    except Untraceable:
        raise
    except Exception as error:  # what a step can do wrong has no common class
        where = _users_line((f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)[::-1])
        reason = str(error).strip().splitlines()[0]
        raise Untraceable(f"its step cannot be followed{where}: {reason}") from error
    return StepGraph(module, rows, tuple(_operations(module, len(parameters), len(xs_leaves))))


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


class _Guard(TorchDispatchMode):
    """Refuses an operation where it is called, so that the refusal can name the user's line."""

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation_name(target)
        if torch.Tag.nondeterministic_seeded in target.tags:
            problem = f"draws random numbers by {name}; a mask belongs to the sequence: use a wiring"
        elif not torch.is_grad_enabled():
            problem = f"switches gradients off around {name}; use detach"
        elif target._schema.is_mutable:
            problem = f"changes a tensor in place by {name}"
        elif name == "_local_scalar_dense":
            problem = "decides by the value of a tensor, which differs from row to row"
        elif target.namespace == "aten" and _kind(target) is None and any(isinstance(arg, Tensor) for arg in args):
            problem = f"uses {name}, which the engine does not know"
        else:
            return target(*args, **(kwargs or {}))
        raise Untraceable(f"its step {problem}{_users_line(_callers())}")


def _callers() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _users_line(frames: Iterable[tuple[str, int]]) -> str:
    """ " (FILE:LINE)" of the innermost frame that is the user's."""
    found = next((f for f in frames if not f[0].startswith(_NOT_THE_USERS)), None)
    return f" ({found[0]}:{found[1]})" if found else ""


class _Step(nn.Module):
    """`cell.step` on lists of leaves."""

    def __init__(self, cell: Cell, xs: Any, start: Any):
        super().__init__()
        self.cell = cell
        self._xs, self.start = xs, start

    def forward(self, inputs: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        y, new = self.cell.step(unflatten(self._xs, inputs), unflatten(self.start, state))
        ends = leaves(new)
        for (name, old), (_, leaf) in zip(leaves(self.start), ends, strict=True):
            if leaf.shape != old.shape or leaf.dtype != old.dtype:
                raise Untraceable(
                    f"its step turns state leaf {name!r} from {tuple(old.shape)} {old.dtype} into "
                    f"{tuple(leaf.shape)} {leaf.dtype}"
                )
        return [y, *(leaf for _, leaf in ends)]


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


def _operations(module: torch.fx.GraphModule, parameters: int, inputs: int) -> Iterator[Operation]:
    needs: dict[torch.fx.Node, frozenset[str]] = {}
    places = ["parameters"] * parameters + ["x"] * inputs
    for place, node in enumerate(module.graph.nodes):
        if node.op == "placeholder":
            needs[node] = frozenset([places[place] if place < len(places) else "state"])
        elif node.op == "get_attr":
            needs[node] = frozenset(["parameters"])
        elif node.op == "call_function":
            needs[node] = frozenset().union(*(needs[other] for other in node.all_input_nodes))
            yield _operation(node, needs[node])


def _operation(node: torch.fx.Node, needs: frozenset[str]) -> Operation:
    kind = _kind(node.target) or "view"  # what is unknown and takes no tensor makes a constant
    if kind != "product":
        return Operation(operation_name(node.target), kind, needs, 0)
    left, right = map(_shape, [arg for arg in node.args if isinstance(arg, torch.fx.Node)][-2:])
    return Operation(operation_name(node.target), kind, needs, 2 * left[-1] * right[-1])


def operation_name(target: Any) -> str:
    """PyTorch's name for an operation, without its overload."""
    return str(getattr(target, "__name__", target)).split(".")[0]


def _kind(target: Any) -> str | None:
    name = operation_name(target)
    if name in _PRODUCTS:
        return "product"
    if name in _REDUCTIONS:
        return "reduction"
    if name in _VIEWS:
        return "view"
    return "pointwise" if torch.Tag.pointwise in getattr(target, "tags", ()) or name in _EXTRA_POINTWISE else None


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
