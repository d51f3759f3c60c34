"""GRUs with constants instead of gates."""

from __future__ import annotations

from torch import sigmoid, tanh

from everstep.equation import Gated


class MiRU1(Gated, gates="r n"):
    """Minion recurrent unit 1 (Zyarah & Kudithipudi 2025, "Minion gated recurrent unit for continual learning").

    r = σ(W_xr x_t + b_xr + W_hr h_{t-1} + b_hr): reset gate;
    n = tanh(W_xn x_t + b_xn + W_hn (r ∘ h_{t-1}) + b_hn); h_t = λ h_{t-1} + (1 − λ) n, with λ = `keep`.

    >>> ys, h = MiRU1(3, 5, keep=0.9)(torch.zeros(2, 7, 3))

    Known limit: all units forget at the same rate, with a time constant of about 1/(1 − λ) steps.
    """

    @staticmethod
    def equation(x, h, s, *, keep=0.5):
        r = sigmoid(x.r + h.r)
        return keep * s.h + (1 - keep) * tanh(x.n + h.of(r * s.h).n)


class MiRU2(Gated, gates="n"):
    """Minion recurrent unit 2 (Zyarah & Kudithipudi 2025, "Minion gated recurrent unit for continual learning").

    n = tanh(W_xn x_t + b_xn + W_hn (β h_{t-1}) + b_hn); h_t = λ h_{t-1} + (1 − λ) n, with λ = `keep`, β = `reset`.

    >>> ys, h = MiRU2(3, 5, keep=0.9)(torch.zeros(2, 7, 3))

    Known limit: it has no gate; it is a leaky RNN in which β only scales W_hn.
    """

    @staticmethod
    def equation(x, h, s, *, keep=0.5, reset=0.5):
        return keep * s.h + (1 - keep) * tanh(x.n + h.of(reset * s.h).n)
