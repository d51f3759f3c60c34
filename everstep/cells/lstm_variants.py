"""The LSTM with one part removed or changed; most are studied in Greff 2017, "LSTM: a search space odyssey"."""

from __future__ import annotations

from torch import sigmoid, tanh

from everstep.equation import Gated


class NoForgetLSTM(Gated, gates="i g o", state="h c"):
    """LSTM without forget gate, whose cell only adds (Hochreiter & Schmidhuber 1997).

    i, o = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·), g = φ(likewise): input and output gate, candidate;
    c_t = c_{t-1} + i ∘ g; h_t = o ∘ tanh(c_t); φ = `activation`.

    >>> ys, (h, c) = NoForgetLSTM(3, 5)(torch.zeros(2, 7, 3))

    Known limit: c_t grows with the sequence, until tanh saturates (the reason for the forget gate, Gers 2000).
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        c = s.c + sigmoid(x.i + h.i) * activation(x.g + h.g)
        return sigmoid(x.o + h.o) * tanh(c), c


class CoupledLSTM(Gated, gates="f g o", state="h c"):
    """LSTM whose input gate is coupled to its forget gate, i = 1 − f (Greff 2017, where it has peepholes too).

    f, o = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·), g = φ(likewise): forget and output gate, candidate;
    c_t = f ∘ c_{t-1} + (1 − f) ∘ g; h_t = o ∘ tanh(c_t); φ = `activation`.

    >>> ys, (h, c) = CoupledLSTM(3, 5)(torch.zeros(2, 7, 3))

    Known limit: with tanh, |c_t| stays below 1: it averages and cannot count.
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        f = sigmoid(x.f + h.f)
        c = f * s.c + (1 - f) * activation(x.g + h.g)
        return sigmoid(x.o + h.o) * tanh(c), c


class LaggedLSTM(Gated, gates="i f g o", state="h c"):
    """LSTM whose output reads the cell of the step before, c_{t-1} (no source of its own; Gers 2000 reads c_t).

    i, f, o = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·), g = φ(likewise): input, forget and output gate, candidate;
    c_t = f ∘ c_{t-1} + i ∘ g; h_t = o ∘ tanh(c_{t-1}); φ = `activation`.

    >>> ys, (h, c) = LaggedLSTM(3, 5)(torch.zeros(2, 7, 3))

    Known limit: h_t depends on x_t only through the output gate; what is written at t is read at t + 1.
    """

    @staticmethod
    def equation(x, h, s, *, activation=tanh):
        c = sigmoid(x.f + h.f) * s.c + sigmoid(x.i + h.i) * activation(x.g + h.g)
        return sigmoid(x.o + h.o) * tanh(s.c), c


class ActivationLSTM(Gated, gates="i f g o", state="h c"):
    """LSTM with any of its five activations replaced; as it stands it equals `LSTM`, and has the same parameters.

    i = σ_i(W_xi x_t + b_xi + W_hi h_{t-1} + b_hi), f = σ_f(…), o = σ_o(…), g = φ(…): input, forget and output gate,
    candidate; c_t = f ∘ c_{t-1} + i ∘ g; h_t = o ∘ ψ(c_t); σ_i = `input_gate`, σ_f = `forget_gate`,
    σ_o = `output_gate`, φ = `activation`, ψ = `squash`: elementwise functions or modules
    (Greff 2017 removes φ or ψ; `torch.ones_like` removes a gate).

    >>> from torch.nn.functional import hardsigmoid
    >>> cell = ActivationLSTM(3, 5, forget_gate=hardsigmoid, squash=torch.relu)
    >>> ys, (h, c) = cell(torch.zeros(2, 7, 3))

    Known limit: no vendor kernel computes it, whatever the activations; unbounded ones may let the state grow.
    """

    @staticmethod
    def equation(
        x, h, s, *, input_gate=sigmoid, forget_gate=sigmoid, output_gate=sigmoid, activation=tanh, squash=tanh
    ):
        c = forget_gate(x.f + h.f) * s.c + input_gate(x.i + h.i) * activation(x.g + h.g)
        return output_gate(x.o + h.o) * squash(c), c
