"""A small tracer: records the operations on tensors without values as a graph."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from everstep.tracing.decompose import DECOMPOSITIONS, FUNCTIONS
from everstep.tracing.graph_modules import graph_module
from everstep.tracing.operations import (
    VIEWS,
    computed,
    flattened,
    kind_of,
    on_meta,
    operation_name,
    replaced,
    tensors_of,
    value_of,
)
from everstep.tracing.refusals import Impure, Untraceable, callers, users_line


class _Traced(Tensor):
    """A tensor without values that refers to its node in the graph.

    Attributes:
        node: its current node; an in-place change replaces it.
        own: whether no other tensor shares its memory, so that it may be changed in place.
    """

    node: fx.Node
    own: bool

    @staticmethod
    def __new__(cls, node: fx.Node, value: Tensor, device: torch.device, own: bool) -> _Traced:
        made: _Traced = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=device
        )
        made.node, made.own = node, own
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def _look(self, *_: Any) -> Any:
        return torch.ops.aten._local_scalar_dense(self)  # an operation that is refused

    tolist = data_ptr = _look  # PyTorch's own versions bypass the recorder

    @classmethod
    def __torch_dispatch__(cls, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(
            f"{operation_name(target)} uses a tensor that a step stored while it was traced; a step must be a "
            "pure function and store nothing"
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"a traced tensor of shape {tuple(self.shape)}"


class Recorder(TorchDispatchMode):
    """Records the operations below autograd as a graph; refuses an unsupported one at its call, with the user's line.

    Unknown operations on parameters alone are accepted, since they run before the loop. Each node's `meta` has "val", a
    meta tensor or a tuple of them; "free", whether it depends on more than parameters; and "line", from `users_line`.

    Args:
        device, rows: of the traced tensors.
        written: tensors that are constants so far, by id.
        as_they_are: names of operations that are recorded as they are called, whether or not the engine knows them: of
            a graph that is not for the engine and has no derivatives.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports PyTorch's compiler, which takes a second

    def __init__(self, device: torch.device, rows: int, written: dict[int, Tensor], as_they_are: Collection[str] = ()):
        super().__init__()
        self._as_they_are = frozenset(as_they_are)
        self.device, self.rows, self.graph = device, rows, fx.Graph()
        # holds no traced tensor: PyTorch would see that it is shared, and detach a copy of each view
        self.outside: dict[int, tuple[Tensor, fx.Node]] = {}
        self._constants: dict[str, Tensor] = {}
        self._written = written
        self._within: list[str] = []  # names of the active decompositions
        self._trouble: Untraceable | None = None

    def input(self, name: str, told: str, like: Tensor, free: bool) -> _Traced:
        """A traced input with the shape of `like`; `told` describes it to the user."""
        node = self.graph.placeholder(name)
        node.meta["told"] = told
        # a step may overwrite its inputs: the graph gets a new value, and the caller's tensors are unchanged
        return self._traced(node, on_meta(like), free, own=free)

    def check(self) -> None:
        """Raise the refusal of the step, if the step caught it."""
        if self._trouble is not None:
            raise self._trouble

    def finish(self, results: list[Any]) -> fx.GraphModule:
        """The graph with the outputs `results`.

        Raises:
            Untraceable: the step was refused, but caught the exception.
        """
        self.check()
        self.graph.output([self._node(result) for result in results])
        self.graph.eliminate_dead_code()
        return graph_module(self._constants, self.graph)

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self._called(target, operation_name(target), args, kwargs)

    def _called(self, target: Any, name: str, args: Any, kwargs: Any) -> Any:
        known = name in DECOMPOSITIONS and name not in self._as_they_are
        if torch.Tag.nondeterministic_seeded in target.tags and not known:
            raise self.refusal(f"draws random numbers by {name}; {DRAWN}")
        if self._out_of_nothing(name, args, kwargs):
            return self._made(target, args, kwargs)
        if target._schema.is_mutable:
            return self._changed(target, name, args, kwargs)
        free = any(self._node(tensor).meta["free"] for tensor in tensors_of(args, kwargs))
        composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        problem = self._problem(target, name, kwargs, free, known or composite)
        if problem is not None:
            raise self.refusal(problem)
        if known and (free or self._of_rows(args, kwargs)):
            with self:
                return self._decomposed(name, args, kwargs)
        if composite and name not in VIEWS:  # called by a composite, below PyTorch's own decomposition
            with self:
                return target.decompose(*args, **kwargs)
        return self._written_down(target, name, args, kwargs, free)

    def _written_down(self, target: Any, name: str, args: Any, kwargs: Any, free: bool) -> Any:
        args_of_node, kwargs_of_node = replaced(self._node, (args, kwargs))
        node = self.graph.create_node("call_function", target, args_of_node, kwargs_of_node, name=name)
        node.meta["line"] = users_line(callers())
        view = target.is_view
        for tensor in tensors_of(args, kwargs) if view or name == "unsafe_split" else []:
            if isinstance(tensor, _Traced):
                tensor.own = False
        args, kwargs = replaced(lambda tensor: self._node(tensor).meta["val"], (args, kwargs))
        whole = kind_of(target) is None and name in self._as_they_are
        value = (computed if whole else value_of)(target, args, kwargs)
        if value is None:  # a check of values
            return None
        if isinstance(value, Tensor):
            return self._traced(node, value, free, own=not view)
        node.meta |= {"val": tuple(value), "free": free}
        parts = [self.graph.call_function(operator.getitem, (node, place)) for place in range(len(value))]
        return [self._traced(part, one, free, own=not view) for part, one in zip(parts, value, strict=True)]

    def _made(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Compute a constant; if that changes other constants in place, the graph keeps their old values."""
        if target._schema.is_mutable:
            memory = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(args, kwargs)}
            changed = [k for k, (t, _) in self.outside.items() if t.untyped_storage().data_ptr() in memory]
            for key in changed:
                del self.outside[key]
        made = target(*args, **kwargs)
        self._written |= {id(tensor): tensor for tensor in tensors_of(made, {})}
        return made

    def _out_of_nothing(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether the result is constant: no parameters, no batch size, no tensors that others may change."""
        if name == "lift_fresh":  # torch.tensor(...)
            return True
        given = flattened((args, kwargs))
        return all(
            id(one) in self._written if isinstance(one, Tensor) else type(one) is not int or not self._of_call(one)
            for one in given
        )

    def _of_call(self, number: int) -> bool:
        """Whether a number may be a size that each call brings, as that of the batch is."""
        return number != 0 and number % self.rows == 0

    def _of_rows(self, args: Any, kwargs: Any) -> bool:
        """Whether a size argument is the batch size."""
        sizes = [n for tensor in tensors_of(args, kwargs) for n in tensor.shape]
        sizes += [one for one in flattened((args, kwargs)) if type(one) is int]
        return any(map(self._of_call, sizes))

    def _decomposed(self, name: str, args: Any, kwargs: Any) -> Any:
        args, kwargs = replaced(self._constant, (args, kwargs))
        if name in self._within:  # calls itself, on a mask with the size of the batch
            raise self.refusal(f"uses {name} across the batch")
        self._within.append(name)
        try:
            made = DECOMPOSITIONS[name](*args, **kwargs)
        except NotImplementedError as reason:
            raise self.refusal(f"uses {name} {reason}") from None
        finally:
            self._within.pop()
        given = list(map(id, tensors_of(args, kwargs)))
        return replaced(lambda t: torch.ops.aten.clone(t) if id(t) in given else t, made)

    def _constant(self, tensor: Tensor) -> Tensor:
        """A constant tensor as a node; its values are read at run time, since others may change them."""
        if isinstance(tensor, _Traced) or id(tensor) in self._written:
            return tensor
        node = self._node(tensor)
        return self._traced(node, node.meta["val"], False, own=False)

    def _changed(self, target: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Record an in-place change of an unshared tensor of the step as a new value."""
        changed = args[0] if args else None
        packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        overloads = (f"Tensor_{target._overloadname}", target._overloadname)  # the first is for pow
        functional = next((found for one in overloads if (found := getattr(packet, one, None))), None)
        if functional is None or not isinstance(changed, _Traced) or not changed.own:
            raise self.refusal(f"changes a tensor in place by {name}", Impure)
        with self:
            new = functional(*args, **kwargs)
        if new.shape != changed.shape or new.dtype != changed.dtype:
            raise self.refusal(f"changes a tensor in place by {name}")
        changed.node = new.node
        return changed

    def _problem(self, target: Any, name: str, kwargs: Any, free: bool, known: bool) -> str | None:
        """The reason to refuse this operation, or None."""
        device = kwargs.get("device")
        if not torch.is_grad_enabled() and not self._as_they_are:
            return f"calls {name} with gradients switched off (no_grad, or an autograd.Function); use detach"
        if torch.Tag.data_dependent_output in target.tags:
            differs = "differs from row to row" if free else "changes as it learns"
            return f"decides by the value of a tensor, which {differs}"
        if device is not None and device.type != self.device.type:
            return f"works on {device} by {name}, but x is on {self.device}"
        if free and kind_of(target) is None and not known and name not in self._as_they_are:
            return f"uses {name}, which the engine does not know{_INSTEAD.get(name, '')}"
        return None

    def refusal(self, problem: str, kind: type[Untraceable] = Untraceable) -> Untraceable:
        """An exception to raise; it takes effect even if the step catches it."""
        trouble = kind(f"its step {problem}{users_line(callers())}")
        self._trouble = self._trouble or trouble
        return trouble

    def _node(self, tensor: Any) -> fx.Node:
        """The node of a traced tensor; for any other tensor, which is constant, the node that reads it."""
        if isinstance(tensor, _Traced):
            if tensor.node.graph is not self.graph:
                raise RuntimeError("a tensor is kept from one call of a step to another")
            return tensor.node
        if not isinstance(tensor, Tensor):
            raise TypeError(f"it gives {type(tensor).__name__} where a tensor is expected")
        if id(tensor) not in self.outside:
            name = f"constant{len(self._constants)}"
            node = self.graph.get_attr(name)
            node.meta |= {"val": on_meta(tensor), "free": False}
            self.outside[id(tensor)] = tensor, node
            self._constants[name] = tensor.clone() if id(tensor) in self._written else tensor
        return self.outside[id(tensor)][1]

    def _traced(self, node: fx.Node, value: Tensor, free: bool, own: bool) -> _Traced:
        node.meta |= {"val": value, "free": free}
        return _Traced(node, value, self.device, own)


class Functions(TorchFunctionMode):
    """Replaces functions whose operations cannot be traced by `decompose.FUNCTIONS`, while a recorder is active."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if problem := _OF_AUTOGRAD.get(function):
            raise self._recorder.refusal(problem)
        if function == _WANTS_GRADIENT:
            return True  # as in training
        return FUNCTIONS.get(function, function)(*args, **(kwargs or {}))


_OF_AUTOGRAD: dict[Any, str] = {
    Tensor.register_hook: "hangs a hook on a gradient",
    Tensor.retain_grad: "keeps the gradient of a tensor",
    Tensor.detach_: "changes a tensor in place by detach_; use detach",
    vars(torch._C.TensorBase)["data"].__set__: "changes a tensor in place by setting its data",
    vars(torch._C.TensorBase)["grad_fn"].__get__: "decides by the grad_fn of a tensor",
    vars(torch._C.TensorBase)["is_leaf"].__get__: "decides by whether a tensor is a leaf",
}
"""Functions without an effect on tensors without gradients, such as traced tensors."""
_WANTS_GRADIENT = vars(torch._C.TensorBase)["requires_grad"].__get__
DRAWN = "a mask belongs to the sequence: see VariationalDropout, Zoneout"
"""The advice on random numbers."""
_INSTEAD = {
    "max": "; use torch.amax for the largest value of a row",
    "min": "; use torch.amin for the least value of a row",
}
"""Advice on replacements for operations."""
