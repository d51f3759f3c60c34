"""Programs that equal cells share, so that a second LSTM of the same sizes is not traced anew.

Only cells made entirely of everstep's and PyTorch's own classes share: the step of a user's class may read globals,
which may have other values by the time another cell of that class is made.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from everstep.abstract import AbstractCell
from everstep.backends.fused.runtime.program import Program
from everstep.native import toolchain
from everstep.tracing.guards import HOUSEHOLD, SIMPLE, modules

_KEPT = 256
"""Most shared programs."""
_LARGE = 1 << 16
"""Most bytes of tensors that a shared program owns."""
_OWN = ("everstep.", "torch.")

_shared: OrderedDict[Hashable, Program] = OrderedDict()


def shared_key(cell: AbstractCell, fingerprint: Any) -> Hashable | None:
    """The key under which equal cells find the program of `cell`; None if the cell does not share."""
    inside = modules(cell)
    if any(fingerprint[2]) or not all(map(_shares, inside)):
        return None
    written = tuple([_functions(type(module)) for module in inside])
    surroundings = toolchain.compiler(), *[os.environ.get(f"EVERSTEP_{name}") for name in ("CXXFLAGS", "CACHE")]
    return fingerprint, written, torch.get_default_dtype(), surroundings


def shared_program(key: Hashable | None) -> Program | None:
    """The program under a key, or None."""
    if key is None or key not in _shared:
        return None
    _shared.move_to_end(key)
    return _shared[key]


def share(key: Hashable | None, program: Program) -> None:
    """Keep a program under its key; replaces the one that was not used for longest if there are too many."""
    if key is None or program.outside.bytes > _LARGE:
        return
    _shared[key] = program
    if len(_shared) > _KEPT:
        _shared.popitem(last=False)


def _shares(module: nn.Module) -> bool:
    """Whether class and attributes of a module decide alone what it computes."""
    values = [value for name, value in vars(module).items() if name not in HOUSEHOLD]
    return _own(type(module)) and all(map(_settled, values))


def _settled(value: Any) -> bool:
    """Whether equal values of this kind are the same in every step."""
    if isinstance(value, dict):
        return all(map(_settled, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_settled, value))
    if isinstance(value, FunctionType):
        return _own(value)
    return type(value) in SIMPLE or isinstance(value, BuiltinFunctionType | torch.dtype)


def _own(thing: type | FunctionType) -> bool:
    """Whether a class, or a function, is one of a module's own, not one made within a function."""
    return str(thing.__module__).startswith(_OWN) and "<locals>" not in thing.__qualname__


def _functions(kind: type) -> tuple[Any, ...]:
    """The methods of a class, in case somebody replaces one."""
    own = [base for base in kind.__mro__ if str(base.__module__).startswith("everstep.")]
    return tuple([value for base in own for value in vars(base).values() if isinstance(value, _METHODS)])


_METHODS = (FunctionType, staticmethod, classmethod, property)
