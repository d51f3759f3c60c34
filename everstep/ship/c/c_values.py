"""Values of a form in C++: an address, sizes and strides, which are numbers or expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

from everstep.ship.sizes import NotExported, Size

Number: TypeAlias = int | str
"""A size or stride: known, or an expression of what is known when a form is called."""
KINDS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "bool",
}


def kind_of(dtype: torch.dtype) -> str:
    """The type in C++.

    Raises:
        NotExported: there is none.
    """
    if dtype not in KINDS:
        raise NotExported(f"it computes with {dtype}, which C++ has no type for here")
    return KINDS[dtype]


def times(a: Number, b: Number) -> Number:
    """a · b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if 0 in (a, b):
        return 0
    return b if a == 1 else a if b == 1 else f"({a} * {b})"


def plus(a: Number, b: Number) -> Number:
    """a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else a if b == 0 else f"({a} + {b})"


def product(sizes: Sequence[Number]) -> Number:
    """The product of all."""
    found: Number = 1
    for size in sizes:
        found = times(found, size)
    return found


def sized(size: int | Size) -> Number:
    """A size of one row; those that a call brings are variables, `n_` and their name."""
    if isinstance(size, int):
        return size
    return plus(product([size.times, *(_named(name) for name in size.of)]), size.plus)


def _named(name: str) -> Number:
    """A size by its name, which may say how it follows from others, as `nodes+1`."""
    told = re.sub(r"[a-z_]+", lambda found: "1" if found[0] in ("batch", "rows") else f"n_{found[0]}", name)
    return 1 if told == "1" else told if told.isidentifier() else f"({told})"


def dense(sizes: Sequence[Number]) -> tuple[Number, ...]:
    """The strides of numbers side by side."""
    found: list[Number] = []
    step: Number = 1
    for size in reversed(sizes):
        found.append(step)
        step = times(step, size)
    return tuple(reversed(found))


class Value(NamedTuple):
    """Numbers in memory.

    Attributes:
        at: the address of the first, as an expression.
        kind: their type in C++.
        sizes, strides: by dimension.
    """

    at: str
    kind: str
    sizes: tuple[Number, ...]
    strides: tuple[Number, ...]

    @property
    def is_dense(self) -> bool:
        """Whether the numbers lie side by side."""
        whole = dense(self.sizes)
        return all(n == 1 or a == b for n, a, b in zip(self.sizes, self.strides, whole, strict=True))

    def moved(self, offset: Number) -> str:
        """The address `offset` numbers further."""
        return self.at if offset == 0 else f"({self.at} + {offset})"

    def spread(self, sizes: Sequence[Number]) -> Value:
        """The value with these sizes, repeated where its own are 1 or missing."""
        lacking = len(sizes) - len(self.sizes)
        own = [1] * lacking + list(self.sizes)
        steps = [0] * lacking + list(self.strides)
        strides = [0 if n == 1 and m != 1 else step for n, m, step in zip(own, sizes, steps, strict=True)]
        return Value(self.at, self.kind, tuple(sizes), tuple(strides))

    def one(self, places: Sequence[str]) -> str:
        """The number at these places."""
        offset: Number = 0
        for place, stride in zip(places, self.strides, strict=True):
            offset = plus(offset, times(place, stride))
        return f"{self.at}[{offset}]"


def shaped(out: Value, sizes: Sequence[Number]) -> Value:
    """A dense value with other sizes."""
    return Value(out.at, out.kind, tuple(sizes), dense(sizes))
