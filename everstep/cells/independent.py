"""The network without connections between the units of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.cells.parametric import Parametric


class IndRNN(Parametric):
    """Independently recurrent network (Li 2018, "Independently recurrent neural network (IndRNN): building …").

    h_t = φ(W x_t + u ∘ h_{t-1} + b), with φ = `activation`, ReLU in the paper, and one recurrent weight for each unit.

    >>> ys, h = IndRNN(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (H, D): W; `vector_hh` (H): u; `bias_ih` (H): b.

    Known limits: units are combined only in the next layer, so use at least two; with ReLU, |u| above 1 explodes
    (the paper clips u to about 2^(1/T)).
    """

    weight_ih: Tensor
    vector_hh: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, *, activation: Any = torch.relu, **how: Any):
        super().__init__(input_size, hidden_size)
        self.activation = activation
        h = hidden_size
        self.declare({"weight_ih": (h, input_size), "vector_hh": (h,), "bias_ih": (h,)}, **how)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        h = self.activation(F.linear(x, self.weight_ih, self.bias_ih) + self.vector_hh * state)
        return h, h
