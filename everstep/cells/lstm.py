"""Long short-term memory."""

from __future__ import annotations

from torch import sigmoid, tanh

from everstep.equation import Gated


class LSTM(Gated, gates="i f g o", state="h c", vendor=lambda options: "lstm"):
    """LSTM with forget gate (Hochreiter & Schmidhuber 1997; Gers 2000); equal to `torch.nn.LSTM`.

    i, f, o = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·), g = tanh(likewise): input, forget and output gate, candidate;
    c_t = f ∘ c_{t-1} + i ∘ g; h_t = o ∘ tanh(c_t).

    >>> import torch
    >>> ys, (h, c) = LSTM(3, 5, bias={"f": 1.0})(torch.zeros(2, 7, 3))
    """

    @staticmethod
    def equation(x, h, s):
        c = sigmoid(x.f + h.f) * s.c + sigmoid(x.i + h.i) * tanh(x.g + h.g)
        return sigmoid(x.o + h.o) * tanh(c), c
