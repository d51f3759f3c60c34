"""Detection of side effects: everything that a step can reach is compared before and after, and restored."""

from __future__ import annotations

import dis
import random
import sys
import sysconfig
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from operator import length_hint
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

HOME = "_everstep_cache"
"""The attribute of a cell in which the engine stores its data."""
_PLAIN = (int, float, complex, str, bytes, type(None), Tensor, torch.dtype, torch.device, CodeType, ModuleType)
"""Types without content to inspect."""
_EQUAL = (int, float, complex, str, bytes)
"""Types that are compared by value."""
_ALIVE = ("logging", "threading", "_thread", "weakref", "_weakref", "torch")
"""Modules whose objects change on their own."""
_DEPTH = 6
"""Levels of nested objects, collections and functions that are inspected."""
_MANY = 10_000
"""Most items of a collection that is inspected."""
_NOTHING = object()
_STDLIB = sysconfig.get_paths()["stdlib"]
_OTHERS = tuple(str(Path(str(m.__file__)).parent) for m in (torch, np, sys.modules["everstep"]))


class Write(NamedTuple):
    """A side effect of a step.

    Attributes:
        told: a description of what was written.
        frames: the file and line of the write, if found.
    """

    told: str
    frames: list[tuple[str, int]]


class _Part(NamedTuple):
    """Mutable content: its name in the step, a function that reads it, and one that restores it."""

    name: str
    on: str
    now: Callable[[], Any]
    put: Callable[[Any], object]
    before: Any


class Watch:
    """A record of everything that a cell's step can reach: attributes, collections, objects, globals, closures.

    Args:
        cell: the cell whose step is about to be called.
    """

    def __init__(self, cell: nn.Module):
        self._parts: list[_Part] = []
        self._codes: dict[CodeType, None] = {}
        self._seen: dict[int, Any] = {}
        for module in cell.modules():
            self._seen[id(module)] = module
        for module in cell.modules():
            self._module(module, 0)

    def undo(self) -> Write | None:
        """Restore everything; returns the first side effect found, or None."""
        found = None
        for part in self._parts:
            now = part.now()
            changed = _difference(part.before, now)
            if changed is None:
                continue
            part.put(part.before)
            name = changed if part.on and isinstance(changed, str) else part.name
            told = f"writes {name!r}{part.on}" if part.on else f"changes what {name!r} holds"
            found = found or Write(told, self._line(name, bool(part.on)))
        return found

    def _line(self, name: str, written: bool) -> list[tuple[str, int]]:
        """The line where a name is written, or else read."""
        for kinds in (("STORE", "DELETE"), ("LOAD",))[0 if written else 1 :]:
            for code in self._codes:
                if code.co_name == "__init__":
                    continue
                line = code.co_firstlineno
                for one in dis.get_instructions(code):
                    line = (one.positions.lineno if one.positions else None) or line
                    if one.argval == name and one.opname.startswith(kinds):
                        return [(code.co_filename, line)]
        return []

    # the reachable content

    def _module(self, module: nn.Module, depth: int) -> None:
        held = vars(module)
        # the norms and masks of `torch.nn.utils` recompute a weight at each call of a module
        hooks = [h for h in held["_forward_pre_hooks"].values() if type(h).__module__.startswith("torch.nn.utils")]
        spared = {getattr(h, key, None) for h in hooks for key in ("name", "_tensor_name")} | {HOME}
        self._names(held, " on its module", spared)
        for kind in ("_parameters", "_buffers", "_modules"):
            self._names(held[kind], " on its module", set())
            self._seen[id(held[kind])] = held[kind]
        self._class(type(module), depth)
        for name, value in list(held.items()):
            if name not in spared:
                self._look(value, name, depth + 1)

    def _names(self, held: dict[str, Any], on: str, spared: set[Any]) -> None:
        """Record attributes, each under its own name."""

        def now() -> dict[str, Any]:
            return {k: v for k, v in list(held.items()) if k not in spared}

        def put(before: dict[str, Any]) -> None:
            for name in now().keys() - before.keys():
                del held[name]
            held.update(before)

        self._add("", on, now, put)

    def _add(self, name: str, on: str, now: Callable[[], Any], put: Callable[[Any], object]) -> None:
        self._parts.append(_Part(name, on, now, put, now()))

    def _class(self, kind: type, depth: int) -> None:
        """Record functions and attributes of a user's class."""
        for one in kind.__mro__:
            if id(one) in self._seen or not users(one):
                continue
            self._seen[id(one)] = one
            plain = [k for k in vars(one) if k[:2] != "__" and not isinstance(vars(one)[k], FunctionType | type)]
            if plain:
                self._class_attributes(one)
            for name, value in list(vars(one).items()):
                value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
                if name[:2] != "__" or isinstance(value, FunctionType):
                    self._look(value, name, depth + 1)

    def _class_attributes(self, kind: type) -> None:
        def now() -> dict[str, Any]:
            return {k: v for k, v in list(vars(kind).items()) if k[:2] != "__" and k[:4] != "_abc"}

        def put(before: dict[str, Any]) -> None:
            for name in now().keys() - before.keys():
                delattr(kind, name)
            for name, value in before.items():
                if vars(kind).get(name, _NOTHING) is not value:
                    setattr(kind, name, value)

        self._add("", f" on {kind.__name__}", now, put)

    def _look(self, value: Any, name: str, depth: int) -> None:
        """Record any value that the step knows under a name."""
        if isinstance(value, _PLAIN) or id(value) in self._seen or depth > _DEPTH:
            return
        self._seen[id(value)] = value
        if isinstance(value, FunctionType):
            self._function(value, depth)
        elif isinstance(value, MethodType):
            self._look(value.__func__, name, depth)
            self._look(value.__self__, name, depth)
        elif isinstance(value, nn.Module):
            self._module(value, depth)
        elif isinstance(value, type):
            self._class(value, depth)
        elif type(value).__module__.split(".")[0] not in _ALIVE:
            self._object(value, name, depth)

    def _object(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, tuple | frozenset):
            inside = [(name, v) for v in value]
        elif isinstance(value, partial):
            inside = [(name, v) for v in (value.func, value.args, value.keywords)]
        else:
            access = _access(value)
            if access is not None:
                self._add(name, "", *access)
            inside = list(_inside(value, name))
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                self._names(attributes, f" on a {type(value).__name__}", set())
            self._class(type(value), depth)
        for inner, held in inside if len(inside) <= _MANY else []:
            self._look(held, inner, depth + 1)

    def _function(self, function: FunctionType, depth: int) -> None:
        """Record the closure variables and the named globals of a function."""
        code = function.__code__
        if foreign(code.co_filename):
            self._look(getattr(function, "__wrapped__", None), function.__name__, depth)  # hooks wrap each step
            return
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._variable(cell, name, depth)
        names: set[str] = set()
        for one in codes_inside(code):
            self._codes[one] = None
            names.update(one.co_names)
        self._globals(function.__globals__, names, depth)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._look(value, function.__name__, depth + 1)

    def _variable(self, cell: CellType, name: str, depth: int) -> None:
        def now() -> Any:
            try:
                return [cell.cell_contents]
            except ValueError:  # not set yet
                return []

        def put(before: list[Any]) -> None:
            if before:
                cell.cell_contents = before[0]

        self._add(name, " around it", now, put)
        for value in now():
            self._look(value, name, depth + 1)

    def _globals(self, held: dict[str, Any], names: set[str], depth: int) -> None:
        def now() -> dict[str, Any]:
            return {name: held[name] for name in names if name in held}

        def put(before: dict[str, Any]) -> None:
            for name in now().keys() - before.keys():
                del held[name]
            held.update(before)

        self._add("", " as a global", now, put)
        for name, value in now().items():
            if not isinstance(value, ModuleType):
                self._look(value, name, depth + 1)
            elif not foreign(getattr(value, "__file__", None)) and id(value) not in self._seen:
                self._seen[id(value)] = value
                self._globals(vars(value), names, depth + 1)


def foreign(file: str | None) -> bool:
    """Whether a file belongs to Python, PyTorch, NumPy or everstep, rather than the user."""
    if file is None or file.startswith(_OTHERS):
        return True
    return file.startswith((_STDLIB, "<frozen")) and "-packages" not in file


def users(kind: type) -> bool:
    """Whether a class is the user's; the module of an interactive session has no file."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ == "__main__" or not foreign(file)


def codes_inside(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and that of the functions and comprehensions in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from codes_inside(inner)


def _inside(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The content of a collection or an object, with names."""
    if isinstance(value, dict):
        yield from ((name, v) for v in list(value.values()))
    elif isinstance(value, list | set | deque):
        yield from ((name, v) for v in list(value))
    yield from list(attributes(value))


def attributes(value: Any) -> list[tuple[str, Any]]:
    """The attributes of an object, including slots."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    found = [(name, getattr(value, name)) for name in slots if name[:2] != "__" and hasattr(value, name)]
    return [*found, *getattr(value, "__dict__", {}).items()]


def _access(value: Any) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
    """Functions that read and restore the content of an object besides its `__dict__`; None if there are none."""
    if isinstance(value, dict | list | deque | set):
        copy: Callable[[Any], Any] = dict if isinstance(value, dict) else set if isinstance(value, set) else list
        return lambda: copy(value), partial(_refill, value)
    if isinstance(value, bytearray):
        return lambda: bytes(value), lambda was: value.__setitem__(slice(None), was)
    if isinstance(value, array):
        return value.tobytes, lambda was: value.__setitem__(slice(None), array(value.typecode, was))
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes, lambda was: np.copyto(value, np.frombuffer(was, value.dtype).reshape(value.shape))
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return lambda: _State(bits.state), lambda was: setattr(bits, "state", was.state)
    if isinstance(value, Iterator):  # only its position can be read
        return lambda: (repr(value), length_hint(value, -1)), lambda was: None
    slots = [name for name, _ in attributes(value) if name not in getattr(value, "__dict__", {})]
    if slots:
        return lambda: {k: getattr(value, k, None) for k in slots}, partial(_set_slots, value)
    return None


class _State:
    """The state of a random generator, in dictionaries and arrays, compared by its text."""

    def __init__(self, state: Any):
        self.state, self._told = deepcopy(state), repr(state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and self._told == other._told

    __hash__ = None  # type: ignore[assignment]


def _refill(value: Any, was: Any) -> None:
    value.clear()
    if isinstance(value, dict | set):
        value.update(was)
    else:
        value.extend(was)


def _set_slots(value: Any, was: dict[str, Any]) -> None:
    for name, held in was.items():
        object.__setattr__(value, name, held)


def _difference(before: Any, now: Any) -> Any:
    """The first key whose value differs, or True for another difference; None if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return next((k for k in keys if not _same(before.get(k, _NOTHING), now.get(k, _NOTHING))), None)
    if isinstance(before, list) and isinstance(now, list):
        same = len(before) == len(now) and all(map(_same, before, now))
        return None if same else True
    return None if before is now or before == now else True


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _EQUAL) and bool(a == b or a != a))
