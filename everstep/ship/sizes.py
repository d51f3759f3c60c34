"""Sizes that each call brings, told from those that are fixed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, combinations
from typing import NamedTuple

from everstep.errors import EverstepError

_PRIMES = (29, 41, 53, 67, 79, 97, 109, 127, 139, 151, 163, 179, 191, 211, 223, 239, 251)
"""Apart by more than twice the largest shift, so that a number is near one of them alone."""
_SHIFTS = (0, -1, 1, -2, 2, -3, 3, -4, 4)


class NotExported(EverstepError):
    """What cannot be written down for another runtime; the message says what stood in the way."""


class Size(NamedTuple):
    """times · (the product of some sizes of the call) + plus."""

    times: int
    of: tuple[str, ...]
    plus: int = 0

    def __str__(self) -> str:
        product = "*".join([*([str(self.times)] if self.times != 1 else []), *self.of])
        return f"{product}{self.plus:+}" if self.plus else product


def pair_of_sizes(names: Sequence[str], taken: Iterable[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Two numbers for each size of a call, of which none divides a size that is `taken`.

    Raises:
        NotExported: there are not enough.
    """
    fixed = set(taken)
    free = [p for p in _PRIMES if not any(n and n % p == 0 for n in fixed)]
    if len(free) < 2 * len(names):
        raise NotExported("the sizes of its parameters leave no number that stands for a size of a call")
    return dict(zip(names, free, strict=False)), dict(zip(names, free[len(names) :], strict=False))


def solved(value: int, other: int, sizes: dict[str, int], others: dict[str, int]) -> int | Size:
    """What a number is of the sizes of a call, by its values for two of these.

    >>> solved(58, 106, {"batch": 29, "time": 41}, {"batch": 53, "time": 67})
    Size(times=2, of=('batch',), plus=0)

    Raises:
        NotExported: it is no multiple of a product of them, plus a small number.
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
