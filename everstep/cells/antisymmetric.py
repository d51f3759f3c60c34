"""Euler steps of a stable differential equation: recurrent matrices are antisymmetric up to a diffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric, between


class _Antisymmetric(Parametric):
    """A product by W_h − W_hᵀ − γI, and a step ε; `gates` say how many rows x has, and a subclass writes the step."""

    gates: tuple[str, ...]
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None

    def __init__(
        self, input_size: int, hidden_size: int, *, step_size: float = 0.1, diffusion: float = 0.01, **how: Any
    ):
        super().__init__(input_size, hidden_size)
        self.step_size = between(self, "step_size", step_size)
        self.diffusion = between(self, "diffusion", diffusion)
        rows = len(self.gates) * hidden_size
        self.declare(
            {"weight_ih": (rows, input_size), "weight_hh": (hidden_size, hidden_size), "bias_ih": (rows,)}, **how
        )

    def recurrent(self, state: Tensor) -> Tensor:
        """(W_h − W_hᵀ − γI) h."""
        return F.linear(state, self.weight_hh - self.weight_hh.t()) - self.diffusion * state


class AntisymmetricRNN(_Antisymmetric):
    """AntisymmetricRNN (Chang 2019, "AntisymmetricRNN: a dynamical system view on recurrent neural networks").

    h_t = h_{t-1} + ε tanh((W_h − W_hᵀ − γI) h_{t-1} + W_x x_t + b), with step ε = `step_size` and diffusion γ =
    `diffusion`: the eigenvalues of W_h − W_hᵀ are imaginary, so that the equation neither explodes nor dies out.

    >>> ys, h = AntisymmetricRNN(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (H, D), `weight_hh` (H, H), `bias_ih` (H).

    Known limits: ε and γ are the user's to tune, and Euler's method is stable for small ε alone; half of `weight_hh` is
    redundant.
    """

    gates = ("n",)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        h = state + self.step_size * tanh(F.linear(x, self.weight_ih, self.bias_ih) + self.recurrent(state))
        return h, h


class GatedAntisymmetricRNN(_Antisymmetric):
    """AntisymmetricRNN with an input gate (Chang 2019, "AntisymmetricRNN: a dynamical system view on …").

    With v = (W_h − W_hᵀ − γI) h_{t-1}: z = σ(v + W_z x_t + b_z): gate;
    h_t = h_{t-1} + ε z ∘ tanh(v + W_n x_t + b_n), with ε = `step_size`, γ = `diffusion`.

    >>> ys, h = GatedAntisymmetricRNN(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (2H, D) and `bias_ih` (2H): the rows of z, then of n; `weight_hh` (H, H), shared by both.

    Known limits: those of `AntisymmetricRNN`.
    """

    gates = ("z", "n")

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        z, n = F.linear(x, self.weight_ih, self.bias_ih).chunk(2, -1)
        v = self.recurrent(state)
        h = state + self.step_size * sigmoid(z + v) * tanh(n + v)
        return h, h
