"""What a user's step reads outside its module: globals, closure variables, class attributes, and functions."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from itertools import chain
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from everstep.tracing.side_effects import codes_inside, foreign, users

_ENTRIES = ("step", "equation", "forward")
"""Methods that a trace calls."""
_BY_TEXT = frozenset({"getattr", "globals", "vars", "attrgetter", "__dict__"})
"""Names by which code finds others by their texts."""
_UNSET = object()
"""In place of a variable without a value."""


class Surroundings:
    """What the steps of modules read outside the modules, found by the names in their code.

    Only code of the user is followed: classes and modules of Python, PyTorch, NumPy and everstep are constant.

    Args:
        inside: the modules of a cell.
    """

    def __init__(self, inside: Iterable[nn.Module]):
        self._names: dict[tuple[int, str], Mapping[str, Any]] = {}
        self._scopes: dict[int, list[Mapping[str, Any]]] = {}
        self._functions: dict[FunctionType, None] = {}
        self._cells: dict[int, CellType] = {}
        self._loaded: set[str] = {*_ENTRIES}
        for module in inside:
            self._class(type(module))
            for value in list(vars(module).values()):
                self._follow(value)
        self._close()
        self._reads = [(scope, name) for (_, name), scope in self._names.items()]
        self._before = self.values()

    def values(self) -> list[Any]:
        """The present values, in the order of `named`."""
        found = [scope.get(name, _UNSET) for scope, name in self._reads]
        found += map(_content, self._cells.values())
        found += [function.__code__ for function in self._functions]
        return found

    def still(self) -> bool:
        """Whether every value is the same object as when this was made."""
        now, before = self.values(), self._before
        return len(now) == len(before) and list(map(id, now)) == list(map(id, before))

    def named(self) -> list[tuple[str, Any]]:
        """The values with their names, for a fingerprint."""
        names = [name for _, name in self._reads] + ["a variable around it"] * len(self._cells)
        names += [function.__qualname__ for function in self._functions]
        return list(zip(names, self._before, strict=True))

    def _close(self) -> None:
        """Follow the loaded names into classes and modules, until nothing is added."""
        size = -1
        while size != (size := len(self._names) + len(self._scopes) + len(self._loaded)):
            for scopes in list(self._scopes.values()):
                for name in sorted(self._loaded.intersection(chain(*scopes))):
                    for scope in scopes:  # a name may yet hide that of a base class
                        self._read(scope, name)

    def _read(self, scope: Mapping[str, Any], name: str) -> None:
        if (id(scope), name) not in self._names:
            self._names[id(scope), name] = scope
            self._follow(scope.get(name))

    def _follow(self, value: Any) -> None:
        if isinstance(value, partial):
            value = value.func
        value = (
            getattr(value, "__func__", value) if isinstance(value, MethodType | staticmethod | classmethod) else value
        )
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType) and not foreign(getattr(value, "__file__", None)):
            self._scopes[id(value)] = [vars(value)]

    def _class(self, kind: type) -> None:
        scopes: list[Mapping[str, Any]] = [base.__dict__ for base in kind.__mro__ if users(base)]
        if scopes:
            self._scopes.setdefault(id(kind), scopes)

    def _function(self, function: FunctionType) -> None:
        if function in self._functions:
            return
        if foreign(function.__code__.co_filename):
            self._follow(getattr(function, "__wrapped__", None))
            return
        self._functions[function] = None
        names, attributes = _loads(function.__code__)
        self._loaded |= attributes
        for name in sorted(names & function.__globals__.keys()):
            self._read(function.__globals__, name)
        for cell in function.__closure__ or ():
            if id(cell) not in self._cells:
                self._cells[id(cell)] = cell
                self._follow(_content(cell))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNSET


@lru_cache(4096)
def _loads(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of globals and of attributes that code loads, also by constant texts, as in `getattr(self, "rate")`."""
    found: tuple[set[str], set[str]] = set(), set()
    for one in codes_inside(code):
        for instruction in dis.get_instructions(one):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found[0].add(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                found[1].add(instruction.argval)
        if not _BY_TEXT.isdisjoint(found[0] | found[1]):
            parts = chain.from_iterable(held if isinstance(held, tuple) else (held,) for held in one.co_consts)
            texts = {text for text in parts if isinstance(text, str)}
            found[0].update(texts)
            found[1].update(texts)
    return frozenset(found[0]), frozenset(found[1])
