"""Recurrences whose gates read only the input, so that they are affine in the state."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Affine
from everstep.parameters import uniform_by_width


class InputGated(Affine):
    """Base class of `MinGRU`, `MinLSTM` and `QRNN`: one product of x_t for all their `gates`, H rows each.

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        bias: whether the gates have a bias.
        device, dtype: of the parameters.

    Parameters, with G gates: `weight_ih` (G·H, D), `bias_ih` (G·H,); initially uniform in ±1/√H.
    """

    gates: ClassVar[tuple[str, ...]]

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
        rows = len(self.gates) * self.output_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.bias_ih = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H."""
        uniform_by_width(self.parameters(), self.hidden_size)

    def rows(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """W x + b for the gates first … last − 1."""
        span = slice(first * self.hidden_size, last * self.hidden_size)
        product = F.linear(x, self.weight_ih[span], None if self.bias_ih is None else self.bias_ih[span])
        return product.chunk(last - first, -1)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}{'' if self.bias_ih is not None else ', bias=False'}"


class MinGRU(InputGated):
    """minGRU (Feng 2024, "Were RNNs all we needed?"): a GRU whose gate and candidate read only x_t.

    z = σ(W_z x_t + b_z); n = W_n x_t + b_n; h_t = (1 − z) ∘ h_{t-1} + z ∘ n.

    >>> ys, h = MinGRU(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.

    Parameters: `weight_ih` (2H, D), `bias_ih` (2H,): the rows of z, then of n; initially uniform in ±1/√H.

    Known limit: the paper's first form, as in `MinLSTM`.
    """

    gates = ("z", "n")

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = 1 − z, b = z ∘ n."""
        gate, candidate = self.rows(x, 0, 2)
        # 1 − σ(u) = σ(−u), without the cancellation
        return torch.sigmoid(-gate), torch.sigmoid(gate) * candidate


class MinLSTM(InputGated):
    """minLSTM (Feng 2024, "Were RNNs all we needed?"): an LSTM whose gates and candidate read only x_t.

    f, i = σ(W_· x_t + b_·): forget and input gate; n = W_n x_t + b_n: candidate;
    h_t = f/(f + i) ∘ h_{t-1} + i/(f + i) ∘ n. The gates add up to 1, so that the scale of h does not drift.

    >>> ys, h = MinLSTM(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.

    Parameters: `weight_ih` (3H, D), `bias_ih` (3H,): the rows of f, i, n; initially uniform in ±1/√H.

    Known limit: this is the paper's first form, whose candidate may be negative; its logarithmic form requires a
    positive candidate, and the scan used here does not need it.
    """

    gates = ("f", "i", "n")

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = f / (f + i), b = i / (f + i) ∘ n."""
        f, i, n = self.rows(x, 0, 3)
        # f/(f + i) = σ(log f − log i), which avoids 0/0 for two small gates; −log σ(u) = softplus(−u)
        odds = F.softplus(-i) - F.softplus(-f)
        return torch.sigmoid(odds), torch.sigmoid(-odds) * n
