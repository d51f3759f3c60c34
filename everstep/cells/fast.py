"""Tiny cells: a residual connection of two scalars, and a gate that shares its matrices with the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric


class FastRNN(Parametric):
    """FastRNN (Kusupati 2018, "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent …").

    h_t = α φ(W x_t + U h_{t-1} + b) + β h_{t-1}, with α = σ(`alpha`) and β = σ(`beta`), two learned scalars, and
    φ = `activation`. Initially α is small and β near 1, as in the authors' code, EdgeML (−3 and 3 before σ).

    >>> ys, h = FastRNN(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (H, D), `weight_hh` (H, H), `bias_ih` (H), `alpha` (1), `beta` (1).

    Known limit: all units forget at the same rate.
    """

    gates = ("n",)
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    alpha: Tensor
    beta: Tensor

    def __init__(self, input_size: int, hidden_size: int, *, activation: Any = tanh, **how: Any):
        super().__init__(input_size, hidden_size)
        self.activation = activation
        h = hidden_size
        shapes = {"weight_ih": (h, input_size), "weight_hh": (h, h), "bias_ih": (h,), "alpha": (1,), "beta": (1,)}
        self.declare(shapes, **how)

    def reset_parameters(self) -> None:
        """α = σ(−3), β = σ(3), the others uniform in ±1/√H."""
        super().reset_parameters()
        nn.init.constant_(self.alpha, -3.0)
        nn.init.constant_(self.beta, 3.0)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        n = self.activation(F.linear(x, self.weight_ih, self.bias_ih) + F.linear(state, self.weight_hh))
        h = sigmoid(self.alpha) * n + sigmoid(self.beta) * state
        return h, h


class FastGRNN(Parametric):
    """FastGRNN (Kusupati 2018, "FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent …").

    p = W x_t + U h_{t-1}; z = γ(p + b_z): gate, γ = `gate`; n = tanh(p + b_n): candidate;
    h_t = (ζ (1 − z) + ν) ∘ n + z ∘ h_{t-1}, with ζ = σ(`zeta`) and ν = σ(`nu`), two learned scalars (initially 1 and −4
    before σ). γ and these initial values are those of the authors' code, EdgeML; torchrecurrent 0.2.5 uses tanh for γ
    by default.

    >>> ys, h = FastGRNN(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (H, D), `weight_hh` (H, H), `bias_z` (H), `bias_n` (H), `zeta` (1), `nu` (1).

    Known limit: low-rank, sparse and quantised W and U, which make the model of the paper tiny, are not offered.
    """

    blocks: ClassVar[Mapping[str, tuple[str, ...]]] = {"bias_z": ("z",), "bias_n": ("n",)}
    weight_ih: Tensor
    weight_hh: Tensor
    bias_z: Tensor | None
    bias_n: Tensor | None
    zeta: Tensor
    nu: Tensor

    def __init__(self, input_size: int, hidden_size: int, *, gate: Any = sigmoid, **how: Any):
        super().__init__(input_size, hidden_size)
        self.gate = gate
        h = hidden_size
        shapes = {"weight_ih": (h, input_size), "weight_hh": (h, h), "bias_z": (h,), "bias_n": (h,)}
        self.declare({**shapes, "zeta": (1,), "nu": (1,)}, **how)

    def reset_parameters(self) -> None:
        """ζ = σ(1), ν = σ(−4), the others uniform in ±1/√H."""
        super().reset_parameters()
        nn.init.constant_(self.zeta, 1.0)
        nn.init.constant_(self.nu, -4.0)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        p = F.linear(x, self.weight_ih) + F.linear(state, self.weight_hh)
        z = self.gate(p if self.bias_z is None else p + self.bias_z)
        n = tanh(p if self.bias_n is None else p + self.bias_n)
        h = (sigmoid(self.zeta) * (1 - z) + sigmoid(self.nu)) * n + z * state
        return h, h
