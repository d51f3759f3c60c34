"""Families of programs that differ in a free size of the state, compiled once for all sizes.

Sizes are plain numbers in graphs, plans and generated code. A step is translated for three sizes. If the translations
differ only in numbers, and each number is a + b · size, the source gets that expression in place of the number, and the
program for another size is interpolated from two of the three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from everstep.backends.fused.codegen.writer import FREE
from everstep.backends.fused.row_graph import Node, ordered
from everstep.backends.fused.runtime.program import Program
from everstep.state import State, leaves
from everstep.tracing.refusals import Untraceable

_KEPT = 256
"""Most sizes with cached programs."""
_LARGEST = 4096
"""Largest other dimension for which free sizes are supported."""
_APART = (
    "step",
    "builder",
    "call_tables",
    "forward_plan",
    "backward_plan",
    "outside",
    "loops",
)


def sizes(shapes: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Three representative sizes: larger than all other dimensions, whole vectors, not powers of two.

    Raises:
        Untraceable: another dimension is too large.
    """
    largest = max((n for shape in shapes for n in shape), default=1)
    if largest > _LARGEST:
        raise Untraceable(f"a free size of the state is compiled beside sizes up to {_LARGEST}, but got {largest}")
    first = 16 * (2 * -(-largest // 32) + 1)
    return first, first + 32, first + 64


class Family:
    """A program for each size.

    Args:
        programs: the programs of three sizes, not loaded.
        axes: the free dimensions of each leaf of the state that has any, by index.

    Raises:
        Untraceable: the programs differ in more than sizes.
    """

    def __init__(self, programs: Sequence[Program], axes: Mapping[int, tuple[int, ...]], training: bool):
        self.axes = axes
        self.first, self.second, third = programs
        _Blend((self.first, self.second), third.free).check(third)
        forward, backward = (
            _merged([getattr(p, way).source for p in programs], [p.free for p in programs])
            for way in ("forward_code", "backward_code")
        )
        self.first.load(forward, backward, training)
        self._made: dict[int, Program] = {}

    def size(self, state: State) -> int | None:
        """The free size of a state; None if it has several."""
        given = [leaf for _, leaf in leaves(state)]
        found = {given[k].shape[axis] for k, axes in self.axes.items() for axis in axes}
        return found.pop() if len(found) == 1 else None

    def parted(self, state: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The leaves that steps change, and those that they only read, converted to the loop's dtype."""
        held = [leaf.to(self.first.dtype) for k, leaf in enumerate(state) if k in self.axes]
        return [leaf for k, leaf in enumerate(state) if k not in self.axes], held

    def joined(self, changed: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
        """All leaves: the changed ones, and copies of the leaves of `state` that are only read."""
        rest = iter(changed)
        return [state[k].clone() if k in self.axes else next(rest) for k in range(len(state))]

    def at(self, size: int) -> Program:
        """The program for a size."""
        found = self._made.get(size)
        if found is None:
            while len(self._made) >= _KEPT:
                self._made.pop(next(iter(self._made)))
            found = self._made[size] = _Blend((self.first, self.second), size).program()
        return found


def _merged(sources: Sequence[str], at: Sequence[int]) -> str:
    """One source for all sizes."""
    parts = [re.split(r"(\d+)", source) for source in sources]
    if len({len(p) for p in parts}) != 1:
        raise _other()
    found = []
    for place, (first, second, third) in enumerate(zip(*parts, strict=True)):
        if first == second == third:
            found.append(first)
            continue
        around = parts[0][place - 1][-1:] + parts[0][place + 1][:1]
        if not place % 2 or "." in around or "e" in around:
            raise _other()
        each, rest = _line(int(first), int(second), at[0], at[1])
        if each * at[2] + rest != int(third):
            raise _other()
        found.append(f"({each} * {FREE} + {rest})")
    return "".join(found)


def _line(first: int, second: int, x: int, y: int) -> tuple[int, int]:
    """The coefficients a, b of a · x + b through (x, `first`) and (y, `second`)."""
    each, left = divmod(second - first, y - x)
    if left:
        raise _other()
    return each, first - each * x


def _other() -> Untraceable:
    return Untraceable("its step does more with a free size of its state than to be as large: it computes with it")


def _nodes(program: Program) -> list[Node]:
    views = (program.step.output, *program.step.following, *program.gradients, *program.totals)
    return ordered(view.node for view in (*views, *program.adjoint.previous, *program.adjoint.held.values()))


class _Blend:
    """Interpolates objects of two sizes to a third size."""

    def __init__(self, programs: tuple[Program, Program], size: int):
        self.programs, self.size = programs, size
        self.x, self.y = (p.free for p in programs)
        self.made: dict[tuple[int, int], Any] = {}

    def program(self) -> Program:
        """The interpolated program."""
        first, second = self.programs
        found = Program.__new__(Program)
        for pair in zip(*map(_nodes, self.programs), strict=True):  # in topological order, to avoid deep recursion
            self.of(*pair)
        for name, value in vars(first).items():
            if name not in _APART:
                setattr(found, name, self.of(value, getattr(second, name)))
        for name in ("loops", "outside", "forward_plan", "backward_plan"):
            setattr(found, name, getattr(first, name, None))
        found.step, found.call_tables, found.free = self.of(first.step, second.step), {}, self.size
        return found

    def check(self, third: Program) -> None:
        """Raise if the interpolation does not reproduce a third program."""
        found = self.program()
        for name in ("kept_places", "kept_sizes", "kept_numbers", "homes", "ends", "states"):
            if getattr(found, name) != getattr(third, name):
                raise _other()
        codes = [(c.row, c.spare, c.matrices) for p in (found, third) for c in (p.forward_code, p.backward_code)]
        if codes[:2] != codes[2:] or found.step.held != third.step.held:
            raise _other()

    def of(self, a: Any, b: Any) -> Any:
        """The interpolation of two values of any type."""
        if type(a) is not type(b):
            raise _other()
        if type(a) is int:
            each, rest = _line(a, b, self.x, self.y)
            return each * self.size + rest
        if isinstance(a, tuple | list):
            if len(a) != len(b):
                raise _other()
            return type(a)([self.of(p, q) for p, q in zip(a, b, strict=True)])
        if isinstance(a, dict):
            return dict(self.of(p, q) for p, q in zip(a.items(), b.items(), strict=True))
        if is_dataclass(a):
            return self._dataclass(a, b)
        if a != b and not (a != a and b != b):
            raise _other()
        return a

    def _dataclass(self, a: Any, b: Any) -> Any:
        key = id(a), id(b)
        if key not in self.made:
            made = self.made[key] = object.__new__(type(a))
            for field in fields(a):
                p, q = getattr(a, field.name), getattr(b, field.name)
                value = p if field.name in ("builder", "before", "source") else self.of(p, q)
                object.__setattr__(made, field.name, value)
        return self.made[key]
