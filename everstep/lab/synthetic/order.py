"""The temporal order of symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Drawn, Kind, Problem, check_whole, one_hot

_LETTERS = 8  # a b c d, X Y, E (begin), B (end)
_X, _BEGIN, _END = 4, 6, 7
# positions of the relevant symbols, in percent of the sequence: experiments 6a and 6b
_SPANS = {2: ((10, 20), (50, 60)), 3: ((10, 20), (33, 43), (66, 76))}


@dataclass(frozen=True)
class TemporalOrder(Problem):
    """The order of X and Y in a long sequence (Hochreiter & Schmidhuber 1997, experiments 6a and 6b).

    A sequence begins with E and ends with B. In between are random symbols a, b, c, d, except for 2 (6a) or 3 (6b)
    positions with X or Y: at 10–20 % and 50–60 % of the steps, or at 10–20, 33–43 and 66–76 %. The target after the
    last step is one of the 2² or 2³ orders, with the first position as the highest bit. Inputs are one-hot; the
    baseline is ln 4 or ln 8.

    >>> TemporalOrder(steps=100, symbols=3).outputs
    8

    Args:
        steps: T ≥ 10.
        symbols: 2 or 3 positions.
        stretch: lengths are drawn from T … T(1 + stretch), with the positions as for T; 0.1 in 1997.

    Raises:
        ValueError: another number of symbols, too few steps, or a negative `stretch`.
    """

    steps: int
    symbols: int = 2
    stretch: float = 0.0
    kind: ClassVar[Kind] = "class"
    input_size = _LETTERS

    def __post_init__(self) -> None:
        check_whole(self, "steps", self.steps, 10)
        if self.symbols not in _SPANS:
            raise ValueError(f"TemporalOrder: symbols should be 2 or 3, but is {self.symbols!r}")
        if not 0 <= self.stretch < 10:
            raise ValueError(f"TemporalOrder: stretch should be a number ≥ 0 and below 10, but is {self.stretch!r}")

    @property
    def outputs(self) -> int:
        return 4 if self.symbols == 2 else 8

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        longest, row = int(self.steps * (1 + self.stretch)), np.arange(rows)
        lengths = random.integers(self.steps, longest + 1, rows) if self.stretch else None
        read = random.integers(0, _X, (rows, longest))
        read[:, 0] = _BEGIN
        read[row, (self.steps if lengths is None else lengths) - 1] = _END
        order = np.zeros(rows, np.int64)
        for low, high in _SPANS[self.symbols]:
            bit = random.integers(0, 2, rows)
            read[row, random.integers(self.steps * low // 100, self.steps * high // 100 + 1, rows)] = _X + bit
            order = 2 * order + bit
        return Drawn(one_hot(read, _LETTERS), order[:, None], lengths)
