"""Discretised differential equations of the second order, or of two time scales."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric, between
from everstep.equation import Gated
from everstep.state import State


class CoRNN(Gated, gates="n v", state="y z"):
    """Coupled oscillators (Rusch & Mishra 2021, "Coupled oscillatory recurrent neural network (coRNN)").

    z_t = z_{t-1} + Δt (tanh(W_xn x_t + b_xn + W_hn y_{t-1} + b_hn + W_hv z_{t-1} + b_hv) − γ y_{t-1} − ε z_{t-1}):
    velocity; y_t = y_{t-1} + Δt z_t: position, the output; Δt = `dt`, frequency γ = `gamma`, damping ε = `epsilon`.
    The paper's eq. 3, with the explicit damping of the authors' code (coRNN).

    >>> ys, (y, z) = CoRNN(3, 5, dt=0.05)(torch.zeros(2, 7, 3))

    Known limit: Δt, γ and ε have to be tuned, and gradients are bounded only for small Δt.
    """

    @staticmethod
    def equation(x, h, s, *, dt=0.1, gamma=1.0, epsilon=1.0):
        z = s.z + dt * (tanh(x.n + h.n + h.of(s.z).v) - gamma * s.y - epsilon * s.z)
        return s.y + dt * z, z


class LEM(Gated, gates="u v z y", state="y z"):
    """Long expressive memory (Rusch 2022, "Long expressive memory for sequence modeling").

    u, v = Δt σ(W_x· x_t + b_x· + W_h· y_{t-1} + b_h·): step sizes of y and z;
    z_t = (1 − v) ∘ z_{t-1} + v ∘ tanh(W_xz x_t + b_xz + W_hz y_{t-1} + b_hz);
    y_t = (1 − u) ∘ y_{t-1} + u ∘ tanh(W_xy x_t + b_xy + W_hy z_t + b_hy): the output; Δt = `dt`.
    The paper's eq. 3; y reads the new z_t, as in the authors' code (LEM, src/*/network.py), whose Δt is also 1;
    torchrecurrent 0.2.5 reads z_{t-1}.

    >>> ys, (y, z) = LEM(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products.
    """

    @staticmethod
    def equation(x, h, s, *, dt=1.0):
        v = dt * sigmoid(x.v + h.v)
        z = (1 - v) * s.z + v * tanh(x.z + h.z)
        u = dt * sigmoid(x.u + h.u)
        return (1 - u) * s.y + u * tanh(x.y + h.of(z).y), z


class Oscillators(NamedTuple):
    """Positions y and velocities z, each (batch, H)."""

    y: Tensor
    z: Tensor


class UnICORNN(Parametric):
    """Undamped independent oscillators (Rusch & Mishra 2021, "UnICORNN: a recurrent model for learning …").

    z_t = z_{t-1} − Δt σ(c) ∘ (tanh(w ∘ y_{t-1} + V x_t + b) + α y_{t-1}): velocity;
    y_t = y_{t-1} + Δt σ(c) ∘ z_t: position, the output; Δt = `dt`, α = `alpha` ≥ 0, and σ(c) a rate for each unit.

    >>> ys, (y, z) = UnICORNN(3, 5, dt=0.05)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (H, D): V; `vector_hh` (H): w, initially uniform in [0, 1]; `rate` (H): c, uniform in ±0.1;
    `bias_ih` (H): b.

    Known limits: units are combined only in the next layer, so use several; nothing is ever forgotten.
    """

    gates = ("force",)
    weight_ih: Tensor
    vector_hh: Tensor
    rate: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, *, dt: float = 0.1, alpha: float = 0.0, **how: Any):
        super().__init__(input_size, hidden_size)
        self.dt, self.alpha = between(self, "dt", dt), between(self, "alpha", alpha)
        h = hidden_size
        self.declare({"weight_ih": (h, input_size), "vector_hh": (h,), "rate": (h,), "bias_ih": (h,)}, **how)

    def reset_parameters(self) -> None:
        """w and c as in the authors' code, the others uniform in ±1/√H."""
        super().reset_parameters()
        nn.init.uniform_(self.vector_hh, 0, 1)
        nn.init.uniform_(self.rate, -0.1, 0.1)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Oscillators(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.hidden_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        y, z = state
        step = self.dt * sigmoid(self.rate)
        force = tanh(self.vector_hh * y + F.linear(x, self.weight_ih, self.bias_ih)) + self.alpha * y
        z = z - step * force
        y = y + step * z
        return y, Oscillators(y, z)
