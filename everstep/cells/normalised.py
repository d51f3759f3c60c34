"""Layer-normalised cells (Ba 2016)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell
from everstep.cells.lstm import LSTM
from everstep.state import State


class _LayerNormed(Cell):
    """Base class of cells with two normalised products without bias.

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        device, dtype: of the parameters.
    """

    gates: ClassVar[tuple[str, ...]]
    norms: ClassVar[dict[str, int]]
    """The number of features of each normalisation, in multiples of H."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.hidden_size = hidden_size
        self.weight_ih = nn.Parameter(
            torch.empty(len(self.gates) * hidden_size, input_size, device=device, dtype=dtype)
        )
        self.weight_hh = nn.Parameter(
            torch.empty(len(self.gates) * hidden_size, hidden_size, device=device, dtype=dtype)
        )
        for name, many in self.norms.items():
            self.add_module(name, nn.LayerNorm(many * hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The matrices uniform in ±1/√H; every α = 1 and β = 0."""
        for matrix in (self.weight_ih, self.weight_hh):
            nn.init.uniform_(matrix, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))
        for norm in self.children():
            assert isinstance(norm, nn.LayerNorm)
            norm.reset_parameters()

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


class LayerNormRNN(_LayerNormed):
    """Layer-normalised simple network (Ba 2016): h_t = tanh(LN(W x_t + U h_{t-1}; α, β)).

    LN(a; α, β) = α ∘ (a − mean a) / √(var a + 1e-5) + β, over the features of a; α, β learned.

    >>> ys, h = LayerNormRNN(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (H, D): W; `weight_hh` (H, H): U; `norm`: α, β.

    Known limit: the sum is normalised, as in the paper, so that W x cannot be normalised before the loop.
    """

    gates, norms = ("n",), {"norm": 1}
    norm: nn.LayerNorm

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        h = torch.tanh(self.norm(F.linear(x, self.weight_ih) + F.linear(state, self.weight_hh)))
        return h, h


class LayerNormLSTM(_LayerNormed):
    """Layer-normalised LSTM (Ba 2016).

    (i, f, g, o) = LN(W x_t; α_x, β_x) + LN(U h_{t-1}; α_h, β_h);
    c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g); h_t = σ(o) ∘ tanh(LN(c_t; α_c, β_c)).
    LN(a; α, β) = α ∘ (a − mean a) / √(var a + 1e-5) + β, over all features of a (for the products, those of the four
    gates together); α, β learned.

    >>> ys, (h, c) = LayerNormLSTM(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (4H, D): W; `weight_hh` (4H, H): U; `norm_x`, `norm_h`, `norm_c`: α and β of each. The
    paper's bias b is β_x + β_h.

    Known limit: no vendor kernel computes it. c itself is not normalised and may grow.
    """

    gates, norms = ("i", "f", "g", "o"), {"norm_x": 4, "norm_h": 4, "norm_c": 1}
    norm_x: nn.LayerNorm
    norm_h: nn.LayerNorm
    norm_c: nn.LayerNorm

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros for h and c."""
        return LSTM.state_type(*(like.new_zeros(batch, self.hidden_size) for _ in "hc"))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        gates = self.norm_x(F.linear(x, self.weight_ih)) + self.norm_h(F.linear(state[0], self.weight_hh))
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.norm_c(c))
        return h, LSTM.state_type(h, c)


class LayerNormGRU(_LayerNormed):
    """Layer-normalised GRU (Ba 2016), with the reset gate after the product.

    (r, z) = LN(W x_t; α_x, β_x) + LN(U h_{t-1}; α_h, β_h): reset and update gate;
    n = tanh(LN(W_n x_t; α_m, β_m) + σ(r) ∘ LN(U_n h_{t-1}; α_n, β_n)): candidate;
    h_t = (1 − σ(z)) ∘ h_{t-1} + σ(z) ∘ n: as in the paper, z weights the new state (in `GRU`, the old one).
    LN(a; α, β) = α ∘ (a − mean a) / √(var a + 1e-5) + β, over all features of a (for the gates, those of both
    together); α, β learned.

    >>> ys, h = LayerNormGRU(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (3H, D): W, W_n; `weight_hh` (3H, H): U, U_n; `norm_x`, `norm_h`, `norm_nx`, `norm_nh`: α
    and β of each, in the order above.

    Known limit: no vendor kernel computes it.
    """

    gates, norms = ("r", "z", "n"), {"norm_x": 2, "norm_h": 2, "norm_nx": 1, "norm_nh": 1}
    norm_x: nn.LayerNorm
    norm_h: nn.LayerNorm
    norm_nx: nn.LayerNorm
    norm_nh: nn.LayerNorm

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        sizes = [2 * self.hidden_size, self.hidden_size]
        gx, nx = F.linear(x, self.weight_ih).split(sizes, -1)
        gh, nh = F.linear(state, self.weight_hh).split(sizes, -1)
        r, z = torch.sigmoid(self.norm_x(gx) + self.norm_h(gh)).chunk(2, -1)
        n = torch.tanh(self.norm_nx(nx) + r * self.norm_nh(nh))
        h = (1 - z) * state + z * n
        return h, h
