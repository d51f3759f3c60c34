"""LSTMs whose recurrent matrix depends on the input."""

from __future__ import annotations

from torch import sigmoid, tanh

from everstep.equation import Gated


class MultiplicativeLSTM(Gated, gates="m i f g o", state="h c"):
    """Multiplicative LSTM (Krause 2016, "Multiplicative LSTM for sequence modelling").

    m = (W_xm x_t + b_xm) ∘ (W_hm h_{t-1} + b_hm): replaces h in every gate;
    i, f, o = σ(W_x· x_t + b_x· + W_h· m + b_h·), g = tanh(likewise): input, forget and output gate, candidate;
    c_t = f ∘ c_{t-1} + i ∘ g; h_t = o ∘ tanh(c_t). The paper has no biases in m.
    This is the cell of the authors' later code (chainer/mLSTMWN.py); the earlier (matlab/mLSTMhutter.m) has no tanh
    in g, and h_t = tanh(o ∘ c_t + b).

    >>> ys, (h, c) = MultiplicativeLSTM(3, 5, bias={"m": 1.0, "f": 1.0})(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products.
    """

    @staticmethod
    def equation(x, h, s):
        m = h.of(x.m * h.m)
        c = sigmoid(x.f + m.f) * s.c + sigmoid(x.i + m.i) * tanh(x.g + m.g)
        return sigmoid(x.o + m.o) * tanh(c), c
