"""Guards of a compiled step: shapes, modes, and the attributes of the cell's modules."""

from __future__ import annotations

import hashlib
import weakref
from array import array
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from everstep.abstract import AbstractCell
from everstep.state import leaves
from everstep.tracing.side_effects import HOME, attributes, users
from everstep.tracing.surroundings import Surroundings

HOUSEHOLD = frozenset({*nn.Module().__dict__, "training", HOME})
"""Attributes that every module has."""
SIMPLE = frozenset({int, float, str, bool, type(None)})
"""Types of immutable values that are compared by value."""
_FIXED = (FunctionType, BuiltinFunctionType, ModuleType, type, nn.Module, Tensor, torch.dtype, torch.device)
_DEPTH = 4
"""Levels of nested objects and collections that are inspected."""
_MANY = 256
"""Most items of a collection in an object's attributes that are inspected."""


def modules(module: nn.Module, found: list[nn.Module] | None = None) -> list[nn.Module]:
    """The module and all its submodules, each once; a faster `nn.Module.modules`."""
    found = [] if found is None else found
    found.append(module)
    for child in module._modules.values():
        if child is not None and all(child is not other for other in found):
            modules(child, found)
    return found


def parameters(among: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters, then buffers, of the modules, each once, in PyTorch's order."""
    found: dict[int, Tensor] = {id(p): p for m in among for p in m._parameters.values() if p is not None}
    buffers: dict[int, Tensor] = {id(b): b for m in among for b in m._buffers.values() if b is not None}
    return [*found.values(), *buffers.values()]


def substituted(cell: AbstractCell) -> bool:
    """Whether a parameter is replaced for this call (`torch.func.functional_call`)."""
    inside = modules(cell)
    given = [t for m in inside for t in m._parameters.values() if t is not None]
    return not all(isinstance(t, nn.Parameter) for t in given) or not all(t.is_leaf for t in parameters(inside))


def fingerprint(cell: AbstractCell, xs: Any) -> Any:
    """Everything that a trace assumes constant, as a hashable key."""
    inside = modules(cell)
    given = parameters(inside)
    places = {id(held): k for k, held in enumerate([*given, *inside])}
    shapes = tuple([(path, leaf.shape[2:], leaf.dtype, leaf.device) for path, leaf in leaves(xs)])
    held = tuple([(type(m), m.training, *_methods(type(m)), *_names(m, places), *_plain(m)) for m in inside])
    called = tuple([tuple(hooks.values()) for hooks in _hooks(inside)])
    read = tuple([(name, _outside(value)) for name, value in Surroundings(inside).named()])
    return shapes, held, called, tuple([(t.shape, t.dtype, t.device) for t in given]), read


def changed(before: Any, after: Any) -> str | None:
    """A description of the attribute, hook or variable in which two fingerprints differ, or None."""
    for old, new in zip(before[1], after[1], strict=False):
        for a, b in zip(old[2:], new[2:], strict=False):
            if hash(a) != hash(b):  # tensors define another equality
                return f"{new[0].__name__}.{b[0]}"
    if hash(before[2]) != hash(after[2]):
        return "a hook"
    return next((b[0] for a, b in zip(before[4], after[4], strict=False) if hash(a) != hash(b)), None)


def _names(module: nn.Module, places: dict[int, int]) -> list[Any]:
    """The names of submodules, parameters and buffers, so that tied ones are distinguished."""
    every = (module._parameters, module._buffers, module._modules)
    return [(name, places.get(id(held))) for names in every for name, held in names.items()]


def _methods(kind: type) -> list[tuple[str, Any]]:
    """The step of a cell's class, in case somebody replaces it; `Surroundings` watches more of a user's class."""
    cells = issubclass(kind, AbstractCell) and not users(kind)
    return [(name, getattr(kind, name)) for name in ("step", "equation") if cells and hasattr(kind, name)]


def _hooks(inside: Sequence[nn.Module]) -> list[dict[int, Any]]:
    """The hooks of the modules inside the cell."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [vars(module)[kind] for module in inside[1:] for kind in kinds]


def _plain(module: nn.Module) -> list[Any]:
    return [
        (k, type(v), v) if type(v) in SIMPLE and v else (k, _value(v))
        for k, v in list(vars(module).items())  # a copy, since another thread may add to it
        if k not in HOUSEHOLD
    ]


def _value(value: Any, depth: int = 0) -> Any:
    """The value as a hashable key, equal only for values with which a step computes the same, as far as known."""
    kind = type(value)
    if kind in SIMPLE:
        return kind, value or str(value)  # distinguishes 1, 1.0 and True, and 0.0 and -0.0
    if isinstance(value, Tensor):
        return _Alive(value)
    if isinstance(value, _FIXED):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return kind, value.shape, str(value.dtype), hashlib.blake2b(value.tobytes()).digest()
    if isinstance(value, bytearray | array):
        return kind, hashlib.blake2b(value).digest()
    if isinstance(value, MethodType):
        return value.__func__, _value(value.__self__, depth)
    return _Same(value) if depth == _DEPTH else (kind, *_inside(value, depth + 1))


def _inside(value: Any, depth: int) -> list[Any]:
    """The items of a collection; for another object, its identity and attributes."""
    if isinstance(value, dict):
        return [(k, _value(v, depth)) for k, v in value.items()]
    if isinstance(value, tuple | list | set | deque):
        return [repr([*value])] if SIMPLE.issuperset(map(type, value)) else [_value(v, depth) for v in value]
    # attributes may refer to objects as large as a corpus
    return [_known(value), *[(k, _Same(v) if _long(v) else _value(v, depth)) for k, v in attributes(value)]]


def _outside(value: Any) -> Any:
    """The key of a value that a step reads outside its module: objects, other than collections, by identity."""
    simple = type(value) in SIMPLE or isinstance(value, _FIXED)
    content = isinstance(value, dict | tuple | list | set | deque) and not _long(value)
    return _value(value) if simple or content else _Same(value)


def _known(value: Any) -> Any:
    """The object itself, if it is hashable."""
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _long(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.size > _MANY
    return isinstance(value, dict | tuple | list | set | deque) and len(value) > _MANY


class _Same:
    """A key that compares an object by identity, and keeps it alive."""

    __slots__ = ("value",)

    def __init__(self, value: object):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Alive:
    """A key that compares a tensor by identity, without keeping it alive."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Tensor):
        self.value, self.hash = weakref.ref(value), id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alive) and self.value() is not None and self.value() is other.value()

    def __hash__(self) -> int:
        return self.hash


class Snapshot:
    """A snapshot of a cell. Checking that the cell is unchanged is faster than computing a fingerprint.

    It refers to the content of the cell, but not to the cell or its `__dict__`, where it is stored itself.

    Attributes:
        parameters: the result of `parameters`; None if they change from call to call.
        found: cached results for the unchanged cell, by row shape, dtype and device of the input.
    """

    def __init__(self, cell: AbstractCell):
        inside = modules(cell)
        self.parameters: list[Tensor] | None = parameters(inside)
        self.found: dict[Any, Any] = {}
        self._types = type(cell), [(m, type(m)) for m in inside[1:]]
        self._tensors = [(t, t.shape, t.dtype, t.device) for t in parameters(inside)]
        self._own = list(map(id, vars(cell).values())), [v for k, v in list(vars(cell).items()) if k != HOME]
        self._held: list[tuple[Collection[Any], list[int], tuple[Any, ...]]] = []
        self._hooks = _hooks(inside)
        self._telling = not any(self._hooks)
        self._methods = [(kind, *one) for kind in dict.fromkeys(map(type, inside)) for one in _methods(kind)]
        self._surroundings = Surroundings(inside)
        for _, value in self._surroundings.named():
            if isinstance(value, dict | list) and not _long(value):
                self._hold(value.values() if isinstance(value, dict) else value)
        for module in inside:
            for names in (module._parameters, module._buffers, module._modules):
                self._hold(names.values())
            if module is not cell:
                self._hold(vars(module).values())
            for name, value in list(vars(module).items()):
                self._telling = self._telling and (name in HOUSEHOLD or self._fixed(value))

    def _hold(self, values: Collection[Any]) -> None:
        self._held.append((values, list(map(id, values)), tuple(values)))  # references keep the ids valid

    def _fixed(self, value: Any) -> bool:
        """Whether the value is immutable, so that a change is always another object."""
        if isinstance(value, dict | list):
            values: Collection[Any] = value.values() if isinstance(value, dict) else value
            self._hold(values)
            return all(map(self._fixed, values))
        if isinstance(value, tuple):
            return all(map(self._fixed, value))
        return type(value) in SIMPLE or isinstance(value, _FIXED)

    def still(self, cell: AbstractCell) -> bool:
        """Whether the cell is certainly unchanged."""
        if not self._telling or any(self._hooks) or type(cell) is not self._types[0]:
            return False
        if list(map(id, vars(cell).values())) != self._own[0]:
            return False
        for module, kind in self._types[1]:
            if type(module) is not kind:
                return False
        for now, then, _ in self._held:
            if list(map(id, now)) != then:
                return False
        for kind, name, method in self._methods:
            if getattr(kind, name, None) is not method:
                return False
        for tensor, shape, dtype, device in self._tensors:
            if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
                return False
        return self._surroundings.still()


class StaticSnapshot(Snapshot):
    """The snapshot of a cell whose owner passes its tensors at each call, always with the same dtypes and shapes.

    Attributes:
        parameters: None, since they belong to the call.
    """

    def __init__(self) -> None:
        self.parameters = None
        self.found = {}

    def still(self, cell: AbstractCell) -> bool:
        """True: only its tensors ever change."""
        return True
