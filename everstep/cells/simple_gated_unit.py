"""The simple gated unit and its deeper form."""

from __future__ import annotations

from torch import Tensor, sigmoid, tanh
from torch.nn.functional import softplus

from everstep.equation import Gated


def hard_sigmoid(v: Tensor) -> Tensor:
    """v / 5 + 1/2, clipped to [0, 1], as in Theano. That of PyTorch, which is newer than the paper, uses v / 6."""
    return (0.2 * v + 0.5).clamp(0, 1)


class SGU(Gated, gates="n z"):
    """Simple gated unit (Gao & Glowacka 2016, "Deep gate recurrent neural network").

    n = tanh(W_hn ((W_xn x_t + b_xn) ∘ h_{t-1}) + b_hn); z = γ(W_xz x_t + b_xz + W_hz h_{t-1} + b_hz): gate, γ = `gate`;
    h_t = (1 − z) ∘ h_{t-1} + z ∘ softplus(n ∘ h_{t-1}). The paper has no b_hn. γ is the hard sigmoid of its time,
    v/5 + 1/2 clipped to [0, 1]; PyTorch and torchrecurrent 0.2.5 use v/6: `gate=torch.nn.Hardsigmoid()`.

    >>> ys, h = SGU(3, 5)(torch.zeros(2, 7, 3))

    Known limit: softplus lets the state grow without bound (`DSGU` does not).
    """

    @staticmethod
    def equation(x, h, s, *, gate=hard_sigmoid):
        n = tanh(h.of(x.n * s.h).n)
        z = gate(x.z + h.z)
        return (1 - z) * s.h + z * softplus(n * s.h)


class DSGU(Gated, gates="n z o"):
    """Deep simple gated unit (Gao & Glowacka 2016, "Deep gate recurrent neural network").

    n = tanh(W_hn ((W_xn x_t + b_xn) ∘ h_{t-1}) + b_hn); z = γ(W_xz x_t + b_xz + W_hz h_{t-1} + b_hz): gate, γ = `gate`;
    h_t = (1 − z) ∘ h_{t-1} + z ∘ σ(W_ho (n ∘ h_{t-1}) + b_ho). The paper has neither b_hn nor b_ho.

    >>> ys, h = DSGU(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has three sequential products. For the hard sigmoid see `SGU`.
    """

    @staticmethod
    def equation(x, h, s, *, gate=hard_sigmoid):
        n = tanh(h.of(x.n * s.h).n)
        z = gate(x.z + h.z)
        return (1 - z) * s.h + z * sigmoid(h.of(n * s.h).o)
