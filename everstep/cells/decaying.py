"""The GRU that decays towards a default where values are missing."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn, relu, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric
from everstep.state import State


class Decayed(NamedTuple):
    """h (batch, H), and the last value of each feature that was there (batch, D)."""

    h: Tensor
    last: Tensor


class GRUD(Parametric):
    """GRU-D (Che 2018, "Recurrent neural networks for multivariate time series with missing values").

    The input is [x_t; m_t; δ_t], D numbers each: the values, 1 where they are known and 0 where they are missing, and
    the time since a value was known before t (0 at the first step). Where a value is missing, x_t is not used but must
    be a finite number.
    γ^x = exp(−max(0, w_γ ∘ δ_t + b_γ)), γ^h = exp(−max(0, W_γ δ_t + b'_γ)): decays of the last values and of the state;
    x̂ = m_t ∘ x_t + (1 − m_t) ∘ (γ^x ∘ x' + (1 − γ^x) ∘ x̃), x' the last known values (0 before the first), x̃ the
    default; ĥ = γ^h ∘ h_{t-1};
    r, z = σ(W_· x̂ + V_· m_t + U_· ĥ + b_·); n = tanh(W_n x̂ + V_n m_t + U_n (r ∘ ĥ) + b_n);
    h_t = (1 − z) ∘ ĥ + z ∘ n.

    >>> x, mask, delta = torch.randn(2, 7, 1), torch.ones(2, 7, 1), torch.ones(2, 7, 1)
    >>> ys, (h, last) = GRUD(3, 5)(torch.cat([x, mask, delta], 2))

    Args:
        input_size: 3 D, a multiple of 3.
        hidden_size: features H of h_t.
        **how: bias (False: no `bias_ih`), device, dtype.

    Parameters: `weight_ih` (3H, 2D), over [x̂; m_t], `weight_hh` (3H, H), `bias_ih` (3H): the rows of r, z, n;
    `decay_x`, `decay_x_bias` (D), `decay_h` (H, D), `decay_h_bias` (H); `default` (D), x̃, which starts at 0 and is
    learned. The paper fixes it to the mean of training, which is 0 for standardised values.

    Known limits: each step has two sequential products; δ counts in the units of training.

    Raises:
        ValueError: `input_size` is not a multiple of 3.
    """

    parts: ClassVar[tuple[str, ...]] = ("x", "mask", "delta")
    gates = ("r", "z", "n")
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    decay_x: Tensor
    decay_x_bias: Tensor
    decay_h: Tensor
    decay_h_bias: Tensor
    default: Tensor

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        if input_size % 3:
            raise ValueError(f"GRUD: input_size should be a multiple of 3 (values, masks, times), but is {input_size}")
        own, rows = input_size // 3, 3 * hidden_size
        self.declare(
            {
                "weight_ih": (rows, 2 * own),
                "weight_hh": (rows, hidden_size),
                "bias_ih": (rows,),
                "decay_x": (own,),
                "decay_x_bias": (own,),
                "decay_h": (hidden_size, own),
                "decay_h_bias": (hidden_size,),
                "default": (own,),
            },
            **how,
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform in ±1/√H, decays in 0 … 1/√H, their biases and the default 0."""
        super().reset_parameters()
        for decay in (self.decay_x, self.decay_h):
            decay.abs_()
        for start in (self.decay_x_bias, self.decay_h_bias, self.default):
            nn.init.zeros_(start)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Decayed(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.input_size // 3))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        h, last = state
        value, mask, delta = x.chunk(3, -1)
        kept = torch.exp(-relu(self.decay_x * delta + self.decay_x_bias))
        h = torch.exp(-relu(F.linear(delta, self.decay_h, self.decay_h_bias))) * h
        seen = mask * value + (1 - mask) * (kept * last + (1 - kept) * self.default)
        size = self.hidden_size
        given = F.linear(torch.cat([seen, mask], -1), self.weight_ih, self.bias_ih)
        gates, candidate = self.weight_hh.split([2 * size, size])
        r, z = sigmoid(given[..., : 2 * size] + F.linear(h, gates)).chunk(2, -1)
        n = tanh(given[..., 2 * size :] + F.linear(r * h, candidate))
        h = (1 - z) * h + z * n
        return h, Decayed(h, mask * value + (1 - mask) * last)
