"""The smallest recurrence: a sum."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.cell import Affine


class Accumulator(Affine):
    """h_t = x_t + h_{t-1}: the running sum of the inputs.

    >>> ys, h = Accumulator(1)(torch.ones(1, 3, 1))
    >>> ys.flatten().tolist()
    [1.0, 2.0, 3.0]
    """

    def __init__(self, input_size: int):
        super().__init__(input_size)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = 1, b = x."""
        return torch.ones_like(x), x
