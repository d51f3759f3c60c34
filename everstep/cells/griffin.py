"""The real-gated linear recurrent unit of Griffin."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Affine
from everstep.parameters import uniform_by_width


class RGLRU(Affine):
    """Real-gated linear recurrent unit, RG-LRU (De 2024, "Griffin").

    r = σ(W_a x_t + b_a), i = σ(W_x x_t + b_x): recurrence and input gate;
    a = σ(Λ)^(8r); h_t = a ∘ h_{t-1} + √(1 − a²) ∘ (i ∘ x_t). Λ is a parameter for each unit.

    >>> ys, h = RGLRU(5)(torch.zeros(2, 7, 5))

    Args:
        size: features of x_t and of h_t.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (2·size, size), `bias_ih` (2·size,): the rows of r, then of i, initially uniform in
    ±1/√size; `decay` (size,): Λ, initially such that σ(Λ)⁸ is uniform in 0.9 … 0.999.

    Known limit: the surrounding block (convolution, gated branch) is not included. The first step of a sequence is
    scaled by √(1 − a²) like all others, as in the paper's equation; the authors' code, recurrentgemma, does not scale
    it.
    """

    gates = ("r", "i")

    def __init__(self, size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__(size)
        self.weight_ih = nn.Parameter(torch.empty(2 * size, size, device=device, dtype=dtype))
        self.bias_ih = nn.Parameter(torch.empty(2 * size, device=device, dtype=dtype))
        self.decay = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gates uniform in ±1/√size; Λ as in the class docstring."""
        uniform_by_width((self.weight_ih, self.bias_ih), self.input_size)
        with torch.no_grad():
            self.decay.copy_(torch.logit(torch.empty_like(self.decay).uniform_(0.9, 0.999) ** (1 / 8)))

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and √(1 − a²) ∘ i ∘ x, from log a = −8 r softplus(−Λ)."""
        r, i = torch.sigmoid(F.linear(x, self.weight_ih, self.bias_ih)).chunk(2, -1)
        log_a = -8 * r * F.softplus(-self.decay)
        # expm1: 1 − a² keeps its digits where a is close to 1
        return torch.exp(log_a), torch.sqrt(-torch.expm1(2 * log_a)) * (i * x)

    def extra_repr(self) -> str:
        return f"{self.input_size}"
