"""Recurrent cells with two stable states for each unit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric
from everstep.equation import Gated


class BRC(Parametric):
    """Bistable recurrent cell (Vecoven 2021, "A bio-inspired bistable recurrent cell allows for long-lasting memory").

    a = 1 + tanh(W_a x_t + b_a + w_a ∘ h_{t-1}): feedback, bistable where a > 1; c = σ(W_c x_t + b_c + w_c ∘ h_{t-1}):
    update gate; h_t = c ∘ h_{t-1} + (1 − c) ∘ tanh(W_n x_t + b_n + a ∘ h_{t-1}). The authors' code has no b_n, and
    starts w_a and w_c at 1.

    >>> ys, h = BRC(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (3H, D) and `bias_ih` (3H): the rows of a, of c, of n; `vector_hh` (2H): w_a, then w_c.

    Known limit: units of a layer are not connected to each other; in `NBRC` they are.
    """

    gates, blocks = ("a", "c", "n"), {"vector_hh": ("a", "c")}
    weight_ih: Tensor
    vector_hh: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        h = hidden_size
        self.declare({"weight_ih": (3 * h, input_size), "vector_hh": (2 * h,), "bias_ih": (3 * h,)}, **how)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        a, c, n = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        w_a, w_c = self.vector_hh.chunk(2)
        c = sigmoid(c + w_c * state)
        h = c * state + (1 - c) * tanh(n + (1 + tanh(a + w_a * state)) * state)
        return h, h


class NBRC(Gated, gates="a c n"):
    """Recurrently neuromodulated bistable cell (Vecoven 2021, "A bio-inspired bistable recurrent cell allows …").

    a = 1 + tanh(W_xa x_t + b_xa + W_ha h_{t-1} + b_ha): feedback, bistable where a > 1;
    c = σ(W_xc x_t + b_xc + W_hc h_{t-1} + b_hc): update gate;
    h_t = c ∘ h_{t-1} + (1 − c) ∘ tanh(W_xn x_t + b_xn + a ∘ h_{t-1}). The authors' code has no b_xn.

    >>> ys, h = NBRC(3, 5)(torch.zeros(2, 7, 3))

    Known limit: within the candidate each unit feeds back only to itself.
    """

    @staticmethod
    def equation(x, h, s):
        c = sigmoid(x.c + h.c)
        return c * s.h + (1 - c) * tanh(x.n + (1 + tanh(x.a + h.a)) * s.h)
