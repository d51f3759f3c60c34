"""Base class of cells whose parameters go beyond those of `gated`: vectors, scalars, several matrices."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from everstep.cell import Cell, check_size
from everstep.parameters import Declaring, uniform_by_width


class Parametric(Declaring, Cell):
    """A cell that declares its parameters by name and shape; a subclass calls `declare` and defines `step`.

    >>> class Decay(Parametric):
    ...     def __init__(self, input_size, hidden_size, **how):
    ...         super().__init__(input_size, hidden_size)
    ...         self.declare({"weight_ih": (hidden_size, input_size), "decay": (hidden_size,)}, **how)
    ...     def step(self, x, h):
    ...         h = torch.sigmoid(self.decay) * h + x @ self.weight_ih.t()
    ...         return h, h
    >>> ys, h = Decay(3, 5)(torch.ones(2, 7, 3))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of the state.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(check_size(self, "input_size", input_size), check_size(self, "hidden_size", hidden_size))
        self.hidden_size = hidden_size

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H."""
        uniform_by_width(self.parameters(recurse=False), self.hidden_size)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


def between(who: nn.Module, name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """`value` if low ≤ value ≤ high; else a ValueError that names `who` and `name`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{type(who).__name__}: {name} should be a number in [{low:g}, {high:g}], but is {value!r}")
    return value
