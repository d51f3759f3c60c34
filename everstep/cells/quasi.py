"""Networks with all products before an elementwise recurrence: QRNN and SRU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Affine, Cell
from everstep.cells.minimal import InputGated
from everstep.parameters import uniform_by_width


class QRNN(InputGated):
    """Quasi-recurrent network with fo-pooling (Bradbury 2017), for a window of one step.

    z = tanh(W_z x_t + b_z); f, o = σ(W_· x_t + b_·): candidate, forget and output gate;
    c_t = f ∘ c_{t-1} + (1 − f) ∘ z; h_t = o ∘ c_t. The state is c. In the authors' code, pytorch-qrnn, f means
    1 − f: to import its weights, negate the rows of f.

    A window of k steps is the paper's masked convolution: put a `Window` below.

    >>> ys, c = QRNN(3, 5)(torch.zeros(2, 7, 3))
    >>> from everstep import Stack, Window
    >>> two = Stack(Window(3, 2), QRNN(2 * 3, 5))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.

    Parameters: `weight_ih` (3H, D), `bias_ih` (3H,): the rows of z, f, o; initially uniform in ±1/√H.

    Known limit: only fo-pooling, not the paper's f- and ifo-pooling; its zoneout is `Zoneout`, which runs as a loop.
    """

    gates = ("z", "f", "o")

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = f, b = (1 − f) ∘ z."""
        z, f = self.rows(x, 0, 2)
        return torch.sigmoid(f), torch.sigmoid(-f) * torch.tanh(z)

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """o ∘ c."""
        (o,) = self.rows(x, 2, 3)
        return torch.sigmoid(o) * h


class _SRU(Cell):
    """The parameters of both simple recurrent units."""

    blocks: ClassVar[Mapping[str, tuple[str, ...]]] = {"bias_ih": ("f", "r"), "weight_c": ("f", "r")}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        highway_bias: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.hidden_size, self.highway_bias = hidden_size, float(highway_bias)
        self.weight_ih = nn.Parameter(
            torch.empty(len(self.gates) * hidden_size, input_size, device=device, dtype=dtype)
        )
        self.bias_ih = nn.Parameter(torch.empty(2 * hidden_size, device=device, dtype=dtype))
        if isinstance(self, SRU):
            self.weight_c = nn.Parameter(torch.empty(2 * hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def gates(self) -> tuple[str, ...]:
        """The rows of `weight_ih`: n is W, s is W_s."""
        return ("n", "f", "r") if self.input_size == self.hidden_size else ("n", "f", "r", "s")

    def reset_parameters(self) -> None:
        """Weights uniform in ±1/√H; b_f = 0, b_r = `highway_bias`."""
        uniform_by_width(self.parameters(), self.hidden_size)
        with torch.no_grad():
            self.bias_ih[: self.hidden_size].zero_()
            self.bias_ih[self.hidden_size :].fill_(self.highway_bias)

    def rows(self, x: Tensor, first: int, last: int, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight_ih[first * self.hidden_size : last * self.hidden_size], bias)

    def shortcut(self, x: Tensor) -> Tensor:
        """α x, projected where the sizes differ; α keeps the variance of x through the highway gate."""
        straight = x if self.input_size == self.hidden_size else self.rows(x, 3, 4)
        return math.sqrt(1 + 2 * math.exp(self.highway_bias)) * straight

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, highway_bias={self.highway_bias}"


class SRU(_SRU):
    """Simple recurrent unit (Lei 2018, "Simple recurrent units for highly parallelizable recurrence").

    f = σ(W_f x_t + v_f ∘ c_{t-1} + b_f), r = σ(W_r x_t + v_r ∘ c_{t-1} + b_r): forget and highway gate;
    c_t = f ∘ c_{t-1} + (1 − f) ∘ (W x_t); h_t = r ∘ c_t + (1 − r) ∘ α x_t. The state is c.
    α = √(1 + 2e^b) with b = `highway_bias`, the initial value of b_r. Where D ≠ H, α W_s x_t replaces α x_t.

    >>> ys, c = SRU(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        highway_bias: b; below 0 initially favours the shortcut.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (3H, D), or (4H, D) where D ≠ H: the rows of W, W_f, W_r, W_s; `bias_ih` (2H,): b_f, b_r;
    `weight_c` (2H,): v_f, v_r; weights initially uniform in ±1/√H.

    Known limit: the gates read c_{t-1}, so the cell is not affine in its state: no parallel scan; see `AffineSRU`.
    """

    weight_c: nn.Parameter

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Both gates read the old c."""
        candidate, f, r = self.rows(x, 0, 3).chunk(3, -1)
        (v_f, v_r), (b_f, b_r) = self.weight_c.chunk(2), self.bias_ih.chunk(2)
        f = torch.sigmoid(f + v_f * state + b_f)
        r = torch.sigmoid(r + v_r * state + b_r)
        c = f * state + (1 - f) * candidate
        return r * c + (1 - r) * self.shortcut(x), c


class AffineSRU(_SRU, Affine):
    """`SRU` whose gates read only x_t, v_f = v_r = 0, as first proposed (Lei 2017, "Training RNNs as fast as CNNs").

    f, r = σ(W_· x_t + b_·): forget and highway gate; c_t = f ∘ c_{t-1} + (1 − f) ∘ (W x_t);
    h_t = r ∘ c_t + (1 − r) ∘ α x_t. The state is c; symbols and arguments as in `SRU`.

    >>> ys, c = AffineSRU(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` and `bias_ih` as in `SRU`.

    Known limit: as in the later paper, α is included, and the first paper's tanh of c_t is omitted.
    """

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a = f, b = (1 − f) ∘ W x."""
        candidate, f = self.rows(x, 0, 2).chunk(2, -1)
        f = f + self.bias_ih[: self.hidden_size]
        return torch.sigmoid(f), torch.sigmoid(-f) * candidate

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """The highway between c and α x."""
        r = self.rows(x, 2, 3, self.bias_ih[self.hidden_size :])
        return torch.sigmoid(r) * h + torch.sigmoid(-r) * self.shortcut(x)
