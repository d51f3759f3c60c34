"""Copying a sequence of random vectors, of any length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Drawn, Kind, Problem, check_whole


@dataclass(frozen=True)
class Copying(Problem):
    """Repeat a sequence of random bit vectors (Graves, Wayne & Danihelka 2014, section 4.1).

    L vectors of `bits` random bits, a signal, and L blanks, during which the vectors are the targets in order:
    2L + 1 steps. x_t has one more feature than the vectors, the signal. L is drawn uniformly for each batch. The
    baseline is `bits` · ln 2 nats per vector.

    >>> problem = Copying(longest=20)
    >>> batch = Copying(longest=5, shortest=5).batch(3)
    >>> batch.inputs.shape, batch.targets.shape
    (torch.Size([3, 11, 9]), torch.Size([3, 5, 8]))

    Args:
        longest: most vectors.
        shortest: fewest vectors.
        bits: bits of a vector.

    Raises:
        ValueError: a size below 1, or `shortest` above `longest`.
    """

    longest: int
    shortest: int = 1
    bits: int = 8
    kind: ClassVar[Kind] = "bits"

    def __post_init__(self) -> None:
        for name in ("longest", "shortest", "bits"):
            check_whole(self, name, getattr(self, name), 1)
        if self.shortest > self.longest:
            raise ValueError(
                f"Copying: shortest should be at most longest, but they are {self.shortest} and {self.longest}"
            )

    @property
    def input_size(self) -> int:
        return self.bits + 1

    @property
    def outputs(self) -> int:
        return self.bits

    @property
    def baseline(self) -> float:
        return self.bits * math.log(2)

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        length = int(random.integers(self.shortest, self.longest + 1))
        vectors = random.integers(0, 2, (rows, length, self.bits)).astype(np.float32)
        inputs = np.zeros((rows, 2 * length + 1, self.bits + 1), np.float32)
        inputs[:, :length, :-1] = vectors
        inputs[:, length, -1] = 1
        return Drawn(inputs, vectors)
