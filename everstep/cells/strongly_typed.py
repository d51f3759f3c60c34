"""Cells in which no matrix ever multiplies the state (Balduzzi & Ghifary 2016)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.minimal import InputGated
from everstep.cells.parametric import Parametric
from everstep.state import State


class TRNN(InputGated):
    """T-RNN (Balduzzi & Ghifary 2016, "Strongly-typed recurrent neural networks").

    z = W_z x_t + b_z; f = σ(W_f x_t + b_f); h_t = f ∘ h_{t-1} + (1 − f) ∘ z: affine in the state. The paper has
    no b_z.

    >>> ys, h = TRNN(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (2H, D) and `bias_ih` (2H): the rows of z, then of f. `MinGRU` is the same cell, with 1 − f
    for its gate.

    Known limit: what is read never depends on the state; stack several layers.
    """

    gates = ("z", "f")

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = f, b = (1 − f) ∘ z."""
        z, f = self.rows(x, 0, 2)
        # 1 − σ(u) = σ(−u), without the cancellation
        return sigmoid(f), sigmoid(-f) * z


class Typed(NamedTuple):
    """The memory c (batch, H), and the last input x (batch, D)."""

    c: Tensor
    x: Tensor


class _TwoInputs(Parametric):
    """z, f and o from x_t and x_{t-1}."""

    gates = ("z", "f", "o")
    weight_ih: Tensor
    weight_previous: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        shape = (3 * hidden_size, input_size)
        self.declare({"weight_ih": shape, "weight_previous": shape, "bias_ih": shape[:1]}, **how)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Typed(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.input_size))

    def activated(self, x: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, σ(a_f) and tanh(a_o)."""
        both = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(previous, self.weight_previous)
        z, f, o = both.chunk(3, -1)
        return z, sigmoid(f), tanh(o)


class TGRU(_TwoInputs):
    """T-GRU (Balduzzi & Ghifary 2016, "Strongly-typed recurrent neural networks").

    With a· = W_· x_t + V_· x_{t-1} + b_·: z = a_z, f = σ(a_f), o = tanh(a_o); h_t = f ∘ h_{t-1} + z ∘ o. The input
    before the first is zero.

    >>> ys, (c, x) = TGRU(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` and `weight_previous` (3H, D), `bias_ih` (3H): the rows of z, f, o. The state: h under the
    name c, and x_{t-1}.

    Known limit: h is linear in its own past; stack several layers.
    """

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        z, f, o = self.activated(x, state[1])
        h = f * state[0] + z * o
        return h, Typed(h, x)


class TLSTM(_TwoInputs):
    """T-LSTM (Balduzzi & Ghifary 2016, "Strongly-typed recurrent neural networks").

    With a· = W_· x_t + V_· x_{t-1} + b_·: z = a_z, f = σ(a_f), o = tanh(a_o); c_t = f ∘ c_{t-1} + (1 − f) ∘ z;
    h_t = c_t ∘ o: the output. The input before the first is zero.

    >>> ys, (c, x) = TLSTM(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` and `weight_previous` (3H, D), `bias_ih` (3H): the rows of z, f, o.

    Known limit: c is linear in its own past; stack several layers.
    """

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        z, f, o = self.activated(x, state[1])
        c = f * state[0] + (1 - f) * z
        return c * o, Typed(c, x)
