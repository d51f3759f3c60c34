"""Operations on tensors as they are called, written down as a graph: a small tracer, on tensors without numbers."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from everstep.tracing.decompose import DECOMPOSITIONS, FUNCTIONS

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv"}
_REDUCTIONS = {
    *("sum", "mean", "var", "var_mean", "amax", "amin", "any", "all"),
    *("native_layer_norm", "_softmax", "_log_softmax"),
}
_VIEWS = {
    *("t", "transpose", "permute", "view", "_unsafe_view", "expand", "squeeze", "unsqueeze", "slice"),
    *("select", "split", "split_with_sizes", "unbind", "diagonal", "cat", "stack", "clone", "alias", "detach"),
    *("unsafe_split", "flip", "getitem", "_to_copy"),
    *("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like", "new_empty"),
}
_EXTRA_POINTWISE = {"_prelu_kernel", "leaky_relu", "log_sigmoid_forward"}  # without the tag, some in torch 2.11 only
_PACKAGE = Path(__file__).parents[1]
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    *(str(_PACKAGE / part) for part in ("tracing", "backends", "native", "abstract.py", "cell.py", "equation.py")),
)
"""Files whose lines are none of the user's."""


class Untraceable(Exception):
    """A step that cannot be followed; the message says which operation stood in the way, and where."""


class Impure(Untraceable):
    """A step that has another effect than its results: only the loop that calls it at every step has the same."""


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
        return self._traced(node, _meta(like), free, own=free)

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
        free = any(self._node(tensor).meta["free"] for tensor in _tensors(args, kwargs))
        composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        problem = self._problem(target, name, kwargs, free, known or composite)
        if problem is not None:
            raise self.refusal(problem)
        if known and (free or self._of_rows(args, kwargs)):
            with self:
                return self._decomposed(name, args, kwargs)
        if composite and name not in _VIEWS:  # called by one of those, below PyTorch's own taking apart
            with self:
                return target.decompose(*args, **kwargs)
        return self._written_down(target, name, args, kwargs, free)

    def _written_down(self, target: Any, name: str, args: Any, kwargs: Any, free: bool) -> Any:
        args_of_node, kwargs_of_node = tree_map_only(Tensor, self._node, (args, kwargs))
        node = self.graph.create_node("call_function", target, args_of_node, kwargs_of_node, name=name)
        node.meta["line"] = users_line(_callers())
        view = target.is_view
        for tensor in _tensors(args, kwargs) if view or name == "unsafe_split" else []:
            if isinstance(tensor, _Traced):
                tensor.own = False
        args, kwargs = tree_map_only(Tensor, lambda tensor: self._node(tensor).meta["val"], (args, kwargs))
        value = _value(target, args, kwargs)
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
            memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args, kwargs)}
            changed = [k for k, (t, _) in self.outside.items() if t.untyped_storage().data_ptr() in memory]
            for key in changed:
                del self.outside[key]
        made = target(*args, **kwargs)
        self._written |= {id(tensor): tensor for tensor in _tensors(made, {})}
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
        sizes = [n for tensor in _tensors(args, kwargs) for n in tensor.shape]
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
        given = list(map(id, _tensors(args, kwargs)))
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
        trouble = kind(f"its step {problem}{users_line(_callers())}")
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
            node.meta |= {"val": _meta(tensor), "free": False}
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


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def _value(target: Any, args: Any, kwargs: Any) -> Any:
    """What an operation makes of tensors on the meta device.

    Views are made there, and what the engine does not know, which may want numbers of some kind. Any other is computed,
    on whatever numbers: many have Python code for the meta device, which imports PyTorch's compiler.
    """
    if target.is_view or (kind_of(target) is None and target._schema.arguments and _tensors(args, kwargs)):
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


def size_told(size: int, rows: int) -> str:
    """A size of a step that is traced with so many rows, in words."""
    if not size or size % rows:
        return str(size)
    return "batch" if size == rows else f"{size // rows}·batch"


def in_words(text: str, rows: int) -> str:
    """What PyTorch or the user says of tensors that have so many rows, without that number, which is nobody's."""
    text = re.sub(r"(?<=\d)x(?=\d)", " x ", text)
    return re.sub(r"(?<![\d.])\d+(?![\d.]*\d)", lambda found: size_told(int(found[0]), rows), text)


def node_told(node: fx.Node) -> str:
    """A value of a step in words."""
    return str(node.meta.get("told") or f"what {operation_name(node.target)} gives")


def differing(first: fx.GraphModule, second: fx.GraphModule, rows: int, others: int) -> fx.Node | None:
    """The first node of a graph of `rows` rows that is another in one of `others` rows, in more than sizes."""
    places = [{node: place for place, node in enumerate(module.graph.nodes)} for module in (first, second)]

    def same(a: Any, b: Any, size: bool = False) -> bool:
        if isinstance(a, fx.Node):
            return isinstance(b, fx.Node) and places[0][a] == places[1][b]
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(same(p, q, True) for p, q in zip(a, b, strict=True))
        if size and type(a) is type(b) is int and a % rows == 0:
            return a * others == b * rows
        return bool(a == b or a != a)

    def alike(a: fx.Node, b: fx.Node) -> bool:
        if a.op == b.op == "get_attr":
            left, right = getattr(first, str(a.target)), getattr(second, str(b.target))
            return left is right or (left.shape == right.shape and bool(((left == right) | (left != left)).all()))
        sizes = operation_name(a.target) == "slice"
        return (
            (a.op, a.target, len(a.args), a.kwargs.keys()) == (b.op, b.target, len(b.args), b.kwargs.keys())
            and all(same(p, q, sizes) for p, q in zip(a.args, b.args, strict=True))
            and all(same(value, b.kwargs[key]) for key, value in a.kwargs.items())
        )

    pairs = zip_longest(*places)
    return next((a or b for a, b in pairs if a is None or b is None or not alike(a, b)), None)


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
