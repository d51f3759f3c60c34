"""Distinguish dynamic sizes, which each call sets, from fixed sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from itertools import chain, combinations
from typing import Any, NamedTuple

from everstep.errors import EverstepError

_PRIMES = (29, 41, 53, 67, 79, 97, 109, 127, 139, 151, 163, 179, 191, 211, 223, 239, 251)
"""More than twice the largest shift apart, so that a number is near only one of them."""
_SHIFTS = (0, -1, 1, -2, 2, -3, 3, -4, 4)


class NotExported(EverstepError):
    """The model cannot be exported; the message gives the reason."""


def check_arguments(handler: Callable[..., Any], name: str, *given: Any, **how: Any) -> None:
    """Refuse arguments of an operation that what writes it does not know.

    >>> check_arguments(lambda writer, x: x, "sum", "writer", "x", wish=1)
    Traceback (most recent call last):
    ...
    everstep.ship.sizes.NotExported: it uses sum with other arguments than are written here: got an unexpected ...
    """
    try:
        signature(handler).bind(*given, **how)
    except TypeError as error:
        raise NotExported(f"it uses {name} with other arguments than are written here: {error}") from None


class Size(NamedTuple):
    """A dynamic size: times · (the product of the dynamic sizes `of`) + plus."""

    times: int
    of: tuple[str, ...]
    plus: int = 0

    def __str__(self) -> str:
        product = "*".join([*([str(self.times)] if self.times != 1 else []), *self.of])
        return f"{product}{self.plus:+}" if self.plus else product


def pair_of_sizes(names: Sequence[str], taken: Iterable[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Choose two different primes for each dynamic size, none of which divides a fixed size in `taken`.

    Raises:
        NotExported: there are not enough such primes.
    """
    fixed = set(taken)
    free = [p for p in _PRIMES if not any(n and n % p == 0 for n in fixed)]
    if len(free) < 2 * len(names):
        raise NotExported("the sizes of its parameters leave too few primes to represent its dynamic sizes")
    return dict(zip(names, free, strict=False)), dict(zip(names, free[len(names) :], strict=False))


def solved(value: int, other: int, sizes: dict[str, int], others: dict[str, int]) -> int | Size:
    """Express a number by dynamic sizes, from its values for two choices of them. An equal value is a fixed number.

    >>> solved(58, 106, {"batch": 29, "time": 41}, {"batch": 53, "time": 67})
    Size(times=2, of=('batch',), plus=0)

    Raises:
        NotExported: it is not a multiple of a product of up to three of them plus a number from −4 to 4.
    """
    if value == other:
        return value
    products = chain.from_iterable(combinations(sizes, n) for n in (1, 2, 3))
    for of in sorted(products, key=len):
        first, second = (math.prod(some[name] for name in of) for some in (sizes, others))
        for plus in _SHIFTS:
            times = (value - plus) // first
            if times > 0 and times * first + plus == value and times * second + plus == other:
                return Size(times, of, plus)
    raise NotExported(f"it computes with a number that is {value} for the sizes {sizes}, and {other} for {others}")
