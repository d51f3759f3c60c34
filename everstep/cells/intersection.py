"""The network with one gate over time and one over depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric


class IntersectionRNN(Parametric):
    """Intersection RNN, +RNN (Collins 2017, "Capacity and trainability in recurrent neural networks").

    With a· = W_· x_t + U_· h_{t-1} + b_·: y_t = g ∘ x_t + (1 − g) ∘ φ(a_y), the output, with the depth gate g = σ(a_g);
    h_t = k ∘ h_{t-1} + (1 − k) ∘ tanh(a_h), the state, with the time gate k = σ(a_k); φ = `activation`.

    >>> ys, h = IntersectionRNN(3)(torch.zeros(2, 7, 3))

    Args:
        input_size: features D of x_t, of y_t and of h_t.
        activation: φ, ReLU in the paper.

    Parameters: `weight_ih` (4D, D), `weight_hh` (4D, D), `bias_ih` (4D): the rows of a_y, a_h, a_g, a_k.

    Known limit: x_t, y_t and h_t have one size, because x_t is passed through; put a projection before it if needed.
    All biases are initialised alike; the first author's cell in TensorFlow adds 1 to a_g and a_k.
    """

    gates = ("y", "h", "g", "k")
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, *, activation: Any = torch.relu, **how: Any):
        super().__init__(input_size, input_size)
        self.activation = activation
        rows = 4 * input_size
        self.declare({"weight_ih": (rows, input_size), "weight_hh": (rows, input_size), "bias_ih": (rows,)}, **how)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        y, n, g, k = (F.linear(x, self.weight_ih, self.bias_ih) + F.linear(state, self.weight_hh)).chunk(4, -1)
        g, k = sigmoid(g), sigmoid(k)
        return g * x + (1 - g) * self.activation(y), k * state + (1 - k) * tanh(n)
