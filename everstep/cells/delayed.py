"""The GRU with delayed feedback."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cell import check_size
from everstep.cells.parametric import Parametric
from everstep.state import State


class Delayed(NamedTuple):
    """h (batch, H), and the states before it, oldest first (batch, delay, H)."""

    h: Tensor
    past: Tensor


class TauGRU(Parametric):
    """τ-GRU (Erichson 2022, "Gated recurrent neural networks with weighted time-delay feedback").

    u = tanh(W_u x_t + U_u h_{t-1} + b_u); z = tanh(W_z x_t + U_z h_{t-1-d} + b_z): the delayed feedback, d = `delay`;
    g, a = σ(W_· x_t + U_· h_{t-1} + b_·): gate, and weight of the feedback;
    h_t = (1 − g) ∘ h_{t-1} + g ∘ (u + a ∘ z). States before the first step are zero.

    >>> ys, (h, past) = TauGRU(3, 5, delay=4)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (4H, D), `weight_hh` (4H, H), `bias_ih` (4H): the rows of u, g, a, z.

    Known limits: the state holds d + 1 vectors, which are shifted in every step; u + a ∘ z reaches ±2.
    """

    gates = ("u", "g", "a", "z")
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, *, delay: int = 1, **how: Any):
        super().__init__(input_size, hidden_size)
        self.delay = check_size(self, "delay", delay)
        rows = 4 * hidden_size
        self.declare({"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias_ih": (rows,)}, **how)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Delayed(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.delay, self.hidden_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        h, past = state
        x_now, x_then = F.linear(x, self.weight_ih, self.bias_ih).split([3 * self.hidden_size, self.hidden_size], -1)
        now, then = self.weight_hh.split([3 * self.hidden_size, self.hidden_size])
        u, g, a = (x_now + F.linear(h, now)).chunk(3, -1)
        z = tanh(x_then + F.linear(past[:, 0], then))
        past = torch.cat([past[:, 1:], h[:, None]], 1)
        g = sigmoid(g)
        h = (1 - g) * h + g * (tanh(u) + sigmoid(a) * z)
        return h, Delayed(h, past)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, delay={self.delay}"
