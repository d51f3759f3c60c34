"""The gated recurrent unit, in its two forms."""

from __future__ import annotations

import torch
from torch import sigmoid, tanh

from everstep.equation import Gated


class GRU(Gated, gates="r z n", vendor=lambda options: "gru" if options["activation"] is torch.tanh else None):
    """GRU with the reset gate after the product, as in cuDNN and `torch.nn.GRU`, which it equals.

    r, z = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·): reset and update gate;
    n = φ(W_xn x_t + b_xn + r ∘ (W_hn h_{t-1} + b_hn)); h_t = (1 − z) ∘ n + z ∘ h_{t-1}; φ = `activation`.

    >>> ys, h = GRU(3, 5)(torch.zeros(2, 7, 3))
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
        n = activation(x.n + r * h.n)
        return (1 - z) * n + z * s.h


class GRUBefore(Gated, gates="r z n"):
    """GRU with the reset gate before the product, as published (Cho 2014).

    r, z = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·): reset and update gate;
    n = φ(W_xn x_t + b_xn + W_hn (r ∘ h_{t-1}) + b_hn); h_t = (1 − z) ∘ n + z ∘ h_{t-1}; φ = `activation`.

    >>> ys, h = GRUBefore(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products, and no vendor kernel computes it.
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        r, z = sigmoid(x.r + h.r), sigmoid(x.z + h.z)
        n = activation(x.n + h.of(r * s.h).n)
        return (1 - z) * n + z * s.h
