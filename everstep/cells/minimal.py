"""Recurrences whose gates see the input alone, so that they are affine in the state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Affine


class MinGRU(Affine):
    """minGRU (Feng 2024, "Were RNNs all we needed?"): a GRU whose gate and candidate see x_t alone.

    z = σ(W_z x_t + b_z); n = W_n x_t + b_n; h_t = (1 − z) ∘ h_{t-1} + z ∘ n.

    >>> ys, h = MinGRU(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.

    Parameters: `weight_ih` (2H, D), `bias_ih` (2H,): the rows of z, then of n; uniform in ±1/√H at first.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.hidden_size = hidden_size
        self.weight_ih = nn.Parameter(torch.empty(2 * hidden_size, input_size, device=device, dtype=dtype))
        self.bias_ih = nn.Parameter(torch.empty(2 * hidden_size, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = 1 − z, b = z ∘ n."""
        gate, candidate = F.linear(x, self.weight_ih, self.bias_ih).chunk(2, -1)
        # 1 − σ(u) = σ(−u), without the cancellation
        return torch.sigmoid(-gate), torch.sigmoid(gate) * candidate

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias_ih is not None else ', bias=False'}"
