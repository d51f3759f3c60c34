"""The adding problem: the sum of two distant numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Drawn, Kind, Problem, check_whole


@dataclass(frozen=True)
class Adding(Problem):
    """The adding problem (Hochreiter & Schmidhuber 1997, experiment 4), in the form of Le 2015.

    x_t = (v_t, m_t): v_t ~ uniform(0, 1); the marker m_t is 1 at two steps, one in each half of the sequence
    (Arjovsky 2016), and 0 elsewhere. The target after the last step is v_a + v_b of the marked steps. The constant
    answer 1 has the squared error 1/6 = 0.1667, the baseline. An error below 0.01 counts as solved.

    >>> Adding(steps=100).batch(3).inputs.shape
    torch.Size([3, 100, 2])

    Args:
        steps: T ≥ 2.
        stretch: lengths are drawn from T … T(1 + stretch), with the markers within the first T; 0.1 in 1997.

    Raises:
        ValueError: T is too short for two markers, or `stretch` is negative.
    """

    steps: int
    stretch: float = 0.0
    kind: ClassVar[Kind] = "number"
    input_size = 2
    outputs = 1
    baseline = 1 / 6

    def __post_init__(self) -> None:
        if isinstance(self.steps, int) and self.steps < 2:
            raise ValueError(f"Adding: two markers need at least 2 steps, but steps is {self.steps}")
        check_whole(self, "steps", self.steps, 2)
        if not 0 <= self.stretch < 10:
            raise ValueError(f"Adding: stretch should be a number ≥ 0 and below 10, but is {self.stretch!r}")

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        longest = int(self.steps * (1 + self.stretch))
        inputs = np.zeros((rows, longest, 2), np.float32)
        inputs[..., 0] = random.random((rows, longest), np.float32)
        half, row = self.steps // 2, np.arange(rows)
        first, second = random.integers(0, half, rows), random.integers(half, self.steps, rows)
        inputs[row, first, 1] = inputs[row, second, 1] = 1
        targets = (inputs[..., 0] * inputs[..., 1]).sum(1)[:, None, None]
        lengths = random.integers(self.steps, longest + 1, rows) if self.stretch else None
        return Drawn(inputs, targets, lengths)
