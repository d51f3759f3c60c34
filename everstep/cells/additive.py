"""Gated cells whose state is a sum of gated inputs, with no product of a matrix and the state in the candidate."""

from __future__ import annotations

from torch import sigmoid, tanh

from everstep.equation import Gated


class ATR(Gated, gates="p"):
    """Addition-subtraction twin-gated RNN (Zhang 2018, "Simplifying neural machine translation with …").

    p = W_xp x_t + b_xp; q = W_hp h_{t-1} + b_hp; i = σ(p + q): input gate; f = σ(p − q): forget gate;
    h_t = i ∘ p + f ∘ h_{t-1}. The paper has no biases: `bias=False`. Its equation for f is a misprint, according to
    the README of the authors' code; this is the f of the code.

    >>> ys, h = ATR(3, 5)(torch.zeros(2, 7, 3))

    Known limit: p is unbounded and i and f may both be near 1, so that the state can grow over time.
    """

    @staticmethod
    def equation(x, h, s):
        p, q = x.p, h.p
        return sigmoid(p + q) * p + sigmoid(p - q) * s.h


class CFN(Gated, gates="f i n"):
    """Chaos-free network (Laurent & von Brecht 2017, "A recurrent neural network without chaos").

    f, i = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·): horizontal (the paper's θ) and vertical gate (η);
    h_t = f ∘ tanh(h_{t-1}) + i ∘ tanh(W_xn x_t + b_xn). The paper's eq. 1 has no b_xn.

    >>> ys, h = CFN(3, 5)(torch.zeros(2, 7, 3))

    Known limit: without input the state always decays to zero.
    """

    @staticmethod
    def equation(x, h, s):
        f, i = sigmoid(x.f + h.f), sigmoid(x.i + h.i)
        return f * tanh(s.h) + i * tanh(x.n)


class RAN(Gated, gates="n i f", state="h c"):
    """Recurrent additive network (Lee 2017, "Recurrent additive networks").

    n = W_xn x_t + b_xn: content, linear in x alone (the paper has no b_xn);
    i, f = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·): input and forget gate;
    c_t = i ∘ n + f ∘ c_{t-1}; h_t = φ(c_t), with φ = `activation`: tanh, or the identity.

    >>> ys, (h, c) = RAN(3, 5)(torch.zeros(2, 7, 3))

    Known limit: c is a weighted sum of inputs; only the gates are nonlinear in the state.
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        c = sigmoid(x.i + h.i) * x.n + sigmoid(x.f + h.f) * s.c
        return activation(c), c
