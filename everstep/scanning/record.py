"""Operations on tensors as they are called, written down as a graph: a small tracer, on tensors without numbers."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from everstep import equation
from everstep.cell import Cell

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv"}
_REDUCTIONS = {
    *("sum", "mean", "var", "var_mean", "amax", "amin", "prod"),
    *("native_layer_norm", "_softmax", "_log_softmax"),
}
_VIEWS = {
    *("t", "transpose", "permute", "view", "_unsafe_view", "reshape", "expand", "squeeze", "unsqueeze", "slice"),
    *("select", "split", "split_with_sizes", "unbind", "diagonal", "cat", "stack", "clone", "alias", "detach"),
    *("getitem", "_to_copy", "lift_fresh"),
    *("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full"),
}
_EXTRA_POINTWISE = {"_prelu_kernel", "leaky_relu", "log_sigmoid_forward"}  # without the tag, some in torch 2.11 only
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    sys.modules[Cell.__module__].__file__ or "",
    equation.__file__,
)


class Untraceable(Exception):
    """A step that cannot be followed; the message says which operation stood in the way, and where."""


class _Traced(Tensor):
    """A tensor without numbers that knows which node of the graph it is."""

    node: fx.Node

    @staticmethod
    def __new__(cls, node: fx.Node, value: Tensor, device: torch.device) -> _Traced:
        made: _Traced = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=device
        )
        made.node = node
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def _look(self, *_: Any) -> Any:
        return torch.ops.aten._local_scalar_dense(self)  # which is refused

    tolist = data_ptr = _look  # PyTorch's own do not pass through the recorder

    @classmethod
    def __torch_dispatch__(cls, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(
            f"{operation_name(target)} came upon a tensor that a step has kept from when it was traced; a step is a "
            "pure function and keeps nothing"
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"a traced tensor of shape {tuple(self.shape)}"


class Recorder(TorchDispatchMode):
    """Writes down the operations below autograd as a graph, and refuses one where it is called, by the user's line."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes a second, for the first operation

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.graph = device, fx.Graph()
        # no traced tensor is held here: PyTorch would see that it is shared, and detach a copy of each view
        self.outside: dict[int, tuple[Tensor, fx.Node]] = {}

    def input(self, name: str, like: Tensor) -> _Traced:
        """A traced tensor that comes in, shaped as `like`."""
        return self._traced(self.graph.placeholder(name), _meta(like))

    def finish(self, results: list[Any]) -> fx.GraphModule:
        """The graph that gives `results`."""
        self.graph.output([self._node(result) for result in results])
        self.graph.eliminate_dead_code()
        return fx.GraphModule({str(node.target): tensor for tensor, node in self.outside.values()}, self.graph)

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operation_name(target)
        problem = self._problem(target, name, args, kwargs)
        if problem is not None:
            raise Untraceable(f"its step {problem}{users_line(_callers())}")
        if name == "lift_fresh":  # torch.tensor(...), which has its numbers
            node = self._node(args[0])
            return self._traced(node, node.meta["val"])
        args_of_node, kwargs_of_node = tree_map_only(Tensor, self._node, (args, kwargs))
        node = self.graph.create_node("call_function", target, args_of_node, kwargs_of_node, name=name)
        args, kwargs = tree_map_only(Tensor, lambda tensor: self._node(tensor).meta["val"], (args, kwargs))
        value = _value(target, args, kwargs)
        if isinstance(value, Tensor):
            return self._traced(node, value)
        node.meta["val"] = tuple(value)
        parts = [self.graph.call_function(operator.getitem, (node, place)) for place in range(len(value))]
        return [self._traced(part, one) for part, one in zip(parts, value, strict=True)]

    def _problem(self, target: Any, name: str, args: Any, kwargs: Any) -> str | None:
        """Why a step cannot hold this operation."""
        device = kwargs.get("device")
        if torch.Tag.nondeterministic_seeded in target.tags:
            return f"draws random numbers by {name}; a mask belongs to the sequence: see VariationalDropout, Zoneout"
        if not torch.is_grad_enabled():
            return f"switches gradients off around {name}; use detach"
        if target._schema.is_mutable:
            return f"changes a tensor in place by {name}"
        if torch.Tag.data_dependent_output in target.tags:
            return "decides by the value of a tensor, which differs from row to row"
        if device is not None and device.type != self.device.type:
            return f"works on {device} by {name}, but x is on {self.device}"
        if kind_of(target) is None and any(isinstance(arg, Tensor) for arg in args):
            return f"uses {name}, which the engine does not know"
        return None

    def _node(self, tensor: Any) -> fx.Node:
        """The node of a traced tensor; of any other, which is a constant, the node that reads it."""
        if isinstance(tensor, _Traced):
            if tensor.node.graph is not self.graph:
                raise RuntimeError("a tensor is kept from one call of a step to another")
            return tensor.node
        if not isinstance(tensor, Tensor):
            raise TypeError(f"it gives {type(tensor).__name__} where a tensor is expected")
        if id(tensor) not in self.outside:
            node = self.graph.get_attr(f"constant{len(self.outside)}")
            node.meta["val"] = _meta(tensor)
            self.outside[id(tensor)] = tensor, node
        return self.outside[id(tensor)][1]

    def _traced(self, node: fx.Node, value: Tensor) -> _Traced:
        node.meta["val"] = value
        return _Traced(node, value, self.device)


def _value(target: Any, args: Any, kwargs: Any) -> Any:
    """What an operation makes of tensors on the meta device.

    Views are made there. Any other is computed, on whatever numbers: many have Python code for the meta device, which
    imports PyTorch's compiler.
    """
    if target.is_view:
        return target(*args, **kwargs)
    if operation_name(target) in _PRODUCTS:
        *others, left, right = args
        if min(left.dim(), right.dim()) > 1 and left.shape[-1] == right.shape[-2]:
            args = *others, left[..., :0], right[..., :0, :]  # sums of nothing have the same shape, and take no time
    if any(argument.name == "device" for argument in target._schema.arguments):
        kwargs = {**kwargs, "device": "cpu"}
    args, kwargs = tree_map_only(Tensor, _standing, (args, kwargs))
    return tree_map_only(Tensor, _meta, target(*args, **kwargs))


def _standing(like: Tensor) -> Tensor:
    """A tensor with some numbers, as they come where any will do: memory that is not touched costs nothing."""
    if like.is_floating_point():
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    reach = sum((n - 1) * stride for n, stride in zip(like.shape, like.stride(), strict=True)) + 1
    ones = torch.ones(reach if like.numel() else 0, dtype=like.dtype, device="cpu")
    return ones.as_strided(like.shape, like.stride())


def _meta(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


def _callers() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def users_line(frames: Iterable[tuple[str, int]]) -> str:
    """ " (FILE:LINE)" of the innermost frame that is the user's."""
    found = next((f for f in frames if not f[0].startswith(_NOT_THE_USERS)), None)
    return f" ({found[0]}:{found[1]})" if found else ""


def operation_name(target: Any) -> str:
    """PyTorch's name for an operation, without its overload."""
    return str(getattr(target, "__name__", target)).split(".")[0]


def kind_of(target: Any) -> str | None:
    """Its kind: "product", "reduction", "view" or "pointwise"; None for what is not known."""
    name = operation_name(target)
    if name in _PRODUCTS:
        return "product"
    if name in _REDUCTIONS:
        return "reduction"
    if name in _VIEWS:
        return "view"
    return "pointwise" if torch.Tag.pointwise in getattr(target, "tags", ()) or name in _EXTRA_POINTWISE else None
