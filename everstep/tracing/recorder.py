"""Operations on tensors as they are called, written down as a graph: a small tracer, on tensors without numbers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from everstep.tracing.decompose import DECOMPOSITIONS, FUNCTIONS
from everstep.tracing.operations import VIEWS, kind_of, on_meta, operation_name, tensors_of, value_of
from everstep.tracing.refusals import Impure, Untraceable, callers, users_line


class _Traced(Tensor):
    """A tensor without numbers that knows which node of the graph it is.

    Attributes:
        node: which, until the tensor is changed in place.
        own: whether no other tensor has its memory, so that it may be.
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
    """Writes down the operations below autograd as a graph, and refuses one where it is called, by the user's line.

    What depends on parameters alone is never refused for being unknown: it is computed before the loop. Each node's
    `meta` has "val", a tensor on the meta device or a tuple of them; "free", whether it depends on more than
    parameters; and "line", the user's, as `users_line` tells it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler, which takes a second, for the first operation

    def __init__(self, device: torch.device, rows: int, written: dict[int, Tensor]):
        super().__init__()
        self.device, self.rows, self.graph = device, rows, fx.Graph()
        # no traced tensor is held here: PyTorch would see that it is shared, and detach a copy of each view
        self.outside: dict[int, tuple[Tensor, fx.Node]] = {}
        self._constants: dict[str, Tensor] = {}
        self._written = written
        self._within: list[str] = []  # which decompositions
        self._trouble: Untraceable | None = None

    def input(self, name: str, told: str, like: Tensor, free: bool) -> _Traced:
        """A traced tensor that comes in, shaped as `like`; `told`: what it is to the user."""
        node = self.graph.placeholder(name)
        node.meta["told"] = told
        # what a step is given, it may write over: what it was given is what it was all the same
        return self._traced(node, on_meta(like), free, own=free)

    def check(self) -> None:
        """Raise what the step has been refused for, if it caught that."""
        if self._trouble is not None:
            raise self._trouble

    def finish(self, results: list[Any]) -> fx.GraphModule:
        """The graph that gives `results`.

        Raises:
            Untraceable: the step has met with one, and caught it.
        """
        self.check()
        self.graph.output([self._node(result) for result in results])
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self._constants, self.graph)

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self._called(target, operation_name(target), args, kwargs)

    def _called(self, target: Any, name: str, args: Any, kwargs: Any) -> Any:
        known = name in DECOMPOSITIONS
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
        if composite and name not in VIEWS:  # called by one of those, below PyTorch's own taking apart
            with self:
                return target.decompose(*args, **kwargs)
        return self._written_down(target, name, args, kwargs, free)

    def _written_down(self, target: Any, name: str, args: Any, kwargs: Any, free: bool) -> Any:
        args_of_node, kwargs_of_node = tree_map_only(Tensor, self._node, (args, kwargs))
        node = self.graph.create_node("call_function", target, args_of_node, kwargs_of_node, name=name)
        node.meta["line"] = users_line(callers())
        view = target.is_view
        for tensor in tensors_of(args, kwargs) if view or name == "unsafe_split" else []:
            if isinstance(tensor, _Traced):
                tensor.own = False
        args, kwargs = tree_map_only(Tensor, lambda tensor: self._node(tensor).meta["val"], (args, kwargs))
        value = value_of(target, args, kwargs)
        if value is None:  # a check of numbers
            return None
        if isinstance(value, Tensor):
            return self._traced(node, value, free, own=not view)
        node.meta |= {"val": tuple(value), "free": free}
        parts = [self.graph.call_function(operator.getitem, (node, place)) for place in range(len(value))]
        return [self._traced(part, one, free, own=not view) for part, one in zip(parts, value, strict=True)]

    def _made(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A constant; where others are changed for it, the graph has them as they were."""
        if target._schema.is_mutable:
            memory = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(args, kwargs)}
            changed = [k for k, (t, _) in self.outside.items() if t.untyped_storage().data_ptr() in memory]
            for key in changed:
                del self.outside[key]
        made = target(*args, **kwargs)
        self._written |= {id(tensor): tensor for tensor in tensors_of(made, {})}
        return made

    def _out_of_nothing(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether this is known now: no parameter, no size of the batch, no tensor that others may change."""
        if name == "lift_fresh":  # torch.tensor(...)
            return True
        given = tree_leaves((args, kwargs))
        return all(
            id(one) in self._written if isinstance(one, Tensor) else type(one) is not int or not one or one % self.rows
            for one in given
        )

    def _of_rows(self, args: Any, kwargs: Any) -> bool:
        """Whether a size is that of the batch."""
        sizes = [n for tensor in tensors_of(args, kwargs) for n in tensor.shape]
        sizes += [one for one in tree_leaves((args, kwargs)) if type(one) is int]
        return any(n and n % self.rows == 0 for n in sizes)

    def _decomposed(self, name: str, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, self._constant, (args, kwargs))
        if name in self._within:  # of itself: of a mask as large as the batch
            raise self.refusal(f"uses {name} across the batch")
        self._within.append(name)
        try:
            made = DECOMPOSITIONS[name](*args, **kwargs)
        except NotImplementedError as reason:
            raise self.refusal(f"uses {name} {reason}") from None
        finally:
            self._within.pop()
        given = list(map(id, tensors_of(args, kwargs)))
        return tree_map_only(Tensor, lambda t: torch.ops.aten.clone(t) if id(t) in given else t, made)

    def _constant(self, tensor: Tensor) -> Tensor:
        """What others may change has no numbers here."""
        if isinstance(tensor, _Traced) or id(tensor) in self._written:
            return tensor
        node = self._node(tensor)
        return self._traced(node, node.meta["val"], False, own=False)

    def _changed(self, target: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A change in place of a tensor that the step has made, and nothing shares, as a new value of it."""
        changed = args[0] if args else None
        packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        overloads = (f"Tensor_{target._overloadname}", target._overloadname)  # the first of pow
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
        """Why a step cannot hold this operation."""
        device = kwargs.get("device")
        if not torch.is_grad_enabled():
            return f"calls {name} with gradients switched off (no_grad, or an autograd.Function); use detach"
        if torch.Tag.data_dependent_output in target.tags:
            differs = "differs from row to row" if free else "changes as it learns"
            return f"decides by the value of a tensor, which {differs}"
        if device is not None and device.type != self.device.type:
            return f"works on {device} by {name}, but x is on {self.device}"
        if free and kind_of(target) is None and not known:
            return f"uses {name}, which the engine does not know{_INSTEAD.get(name, '')}"
        return None

    def refusal(self, problem: str, kind: type[Untraceable] = Untraceable) -> Untraceable:
        """To be raised; it counts also if the step catches it."""
        trouble = kind(f"its step {problem}{users_line(callers())}")
        self._trouble = self._trouble or trouble
        return trouble

    def _node(self, tensor: Any) -> fx.Node:
        """The node of a traced tensor; of any other, which is a constant, the node that reads it."""
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
    """Puts `decompose.FUNCTIONS` in the place of functions whose operations no graph can hold, beside a recorder."""

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
"""What has no meaning for a tensor without derivatives, as a traced one is."""
_WANTS_GRADIENT = vars(torch._C.TensorBase)["requires_grad"].__get__
DRAWN = "a mask belongs to the sequence: see VariationalDropout, Zoneout"
"""What is said of random numbers."""
_INSTEAD = {
    "max": "; use torch.amax for the largest value of a row",
    "min": "; use torch.amin for the least value of a row",
}
"""What to use in the place of an operation."""
