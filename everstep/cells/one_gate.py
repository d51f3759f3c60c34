"""Cells with a single gate."""

from __future__ import annotations

import torch
from torch import sigmoid, tanh

from everstep.equation import Gated


class UGRNN(Gated, gates="n g"):
    """Update gate RNN (Collins 2017, "Capacity and trainability in recurrent neural networks").

    n = tanh(W_xn x_t + b_xn + W_hn h_{t-1} + b_hn): candidate; g = σ(likewise): update gate;
    h_t = g ∘ h_{t-1} + (1 − g) ∘ n.

    >>> ys, h = UGRNN(3, 5, bias={"g": 1.0})(torch.zeros(2, 7, 3))

    Known limit: with g near 1 nothing new is read: a unit either keeps its state or reads.
    """

    @staticmethod
    def equation(x, h, s):
        g = sigmoid(x.g + h.g)
        return g * s.h + (1 - g) * tanh(x.n + h.n)


class MGU(Gated, gates="f n"):
    """Minimal gated unit (Zhou 2016, "Minimal gated unit for recurrent neural networks").

    f = σ(W_xf x_t + b_xf + W_hf h_{t-1} + b_hf): forget gate, which also acts as the GRU's reset gate;
    n = φ(W_xn x_t + b_xn + W_hn (f ∘ h_{t-1}) + b_hn); h_t = (1 − f) ∘ h_{t-1} + f ∘ n; φ = `activation`.

    >>> ys, h = MGU(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products.
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        f = sigmoid(x.f + h.f)
        return (1 - f) * s.h + f * activation(x.n + h.of(f * s.h).n)


class LiGRU(Gated, gates="z n"):
    """Light GRU (Ravanelli 2018, "Light gated recurrent units for speech recognition").

    z = σ(W_xz x_t + b_xz + W_hz h_{t-1} + b_hz): update gate; n = φ(likewise): candidate, φ = `activation`;
    h_t = z ∘ h_{t-1} + (1 − z) ∘ n.

    >>> ys, h = LiGRU(3, 5)(torch.zeros(2, 7, 3))

    Known limits: the paper's batch normalisation of W_x· x_t, which keeps the ReLU bounded, is omitted, because it
    would make the rows of a batch depend on one another; without it, a large W_hn lets the state grow without bound.
    """

    @staticmethod
    def equation(x, h, s, *, activation=torch.relu):
        z = sigmoid(x.z + h.z)
        return z * s.h + (1 - z) * activation(x.n + h.n)


class LightRU(Gated, gates="n f"):
    """Light recurrent unit (Ye 2024, "Light recurrent unit: towards an interpretable recurrent neural network …").

    n = tanh(W_xn x_t + b_xn): candidate, from x only; f = σ(W_xf x_t + b_xf + W_hf h_{t-1} + b_hf): gate;
    h_t = (1 − f) ∘ h_{t-1} + f ∘ n.

    >>> ys, h = LightRU(3, 5)(torch.zeros(2, 7, 3))

    Known limit: features of h are combined only inside the gate.
    """

    @staticmethod
    def equation(x, h, s):
        f = sigmoid(x.f + h.f)
        return (1 - f) * s.h + f * tanh(x.n)


class JANET(Gated, gates="f n"):
    """Just another network (van der Westhuizen 2018, "The unreasonable effectiveness of the forget gate").

    a = W_xf x_t + b_xf + W_hf h_{t-1} + b_hf; n = tanh(W_xn x_t + b_xn + W_hn h_{t-1} + b_hn): candidate;
    h_t = σ(a) ∘ h_{t-1} + (1 − σ(a − β)) ∘ n: an LSTM with only its forget gate; with β = `beta` > 0, more is let in
    than is forgotten.

    >>> ys, h = JANET(3, 5)(torch.zeros(2, 7, 3))

    Known limit: it trains well on long sequences only with chrono initialisation of the forget bias, as in the paper
    (`everstep.cells.initialise.init_chrono`, with `input=None`).
    """

    @staticmethod
    def equation(x, h, s, *, beta=1.0):
        a = x.f + h.f
        # 1 − σ(u) = σ(−u), without the cancellation
        return sigmoid(a) * s.h + sigmoid(beta - a) * tanh(x.n + h.n)


class MinimalRNN(Gated, gates="z u v"):
    """MinimalRNN (Chen 2017, "MinimalRNN: toward more interpretable and trainable recurrent neural networks").

    z = tanh(W_xz x_t + b_xz): the input mapped into the space of the state;
    u = σ(W_hu h_{t-1} + b_hu + W_hv z + b_hv): update gate; h_t = u ∘ h_{t-1} + (1 − u) ∘ z.
    W_hv is the paper's U_z, and b_hv is a second bias where the paper has one.

    >>> ys, h = MinimalRNN(3, 5)(torch.zeros(2, 7, 3))

    Known limit: features of h are combined only inside the gate.
    """

    @staticmethod
    def equation(x, h, s):
        z = tanh(x.z)
        u = sigmoid(h.u + h.of(z).v)
        return u * s.h + (1 - u) * z


class STAR(Gated, gates="n k"):
    """Stackable recurrent cell (Turkoglu 2021, "Gating revisited: deep multi-layer RNNs that can be trained").

    n = tanh(W_xn x_t + b_xn): candidate, from x only; k = σ(W_xk x_t + b_xk + W_hk h_{t-1} + b_hk): gate;
    h_t = tanh((1 − k) ∘ h_{t-1} + k ∘ n). With σ(a) = 1 − k, the authors' code gives n the
    weight 1 − σ(a − 1), as `JANET` does, where the paper has k.

    >>> ys, h = STAR(3, 5)(torch.zeros(2, 7, 3))

    Known limit: the outer tanh shrinks the state in every step, so that long memory fades even if k = 0.
    """

    @staticmethod
    def equation(x, h, s):
        k = sigmoid(x.k + h.k)
        return tanh((1 - k) * s.h + k * tanh(x.n))


class SGRN(Gated, gates="n"):
    """Simple gated recurrent network (Zu & Wei 2021, "A simple gated recurrent network for detection of power …").

    f = σ(W_xn x_t + b_xn + W_hn h_{t-1} + b_hn): forget gate;
    h_t = tanh((1 − f) ∘ (W_xn x_t + b_xn) + f ∘ h_{t-1}): gate and candidate share one matrix. The paper
    (doi:10.1049/gtd2.12056) has no b_xn.

    >>> ys, h = SGRN(3, 5)(torch.zeros(2, 7, 3))

    Known limit: the candidate and the gate cannot be learned separately.
    """

    @staticmethod
    def equation(x, h, s):
        f = sigmoid(x.n + h.n)
        return tanh((1 - f) * x.n + f * s.h)
