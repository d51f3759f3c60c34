"""The three cells that a search over ten thousand architectures found (Jozefowicz 2015)."""

from __future__ import annotations

from torch import sigmoid, tanh

from everstep.equation import Gated


class MUT1(Gated, gates="z r n"):
    """MUT1 (Jozefowicz 2015, "An empirical exploration of recurrent network architectures").

    z = σ(W_xz x_t + b_xz): update gate, from x only; r = σ(W_xr x_t + b_xr + W_hr h_{t-1} + b_hr): reset gate;
    n = tanh(W_hn (r ∘ h_{t-1}) + b_hn + tanh(W_xn x_t + b_xn)); h_t = z ∘ n + (1 − z) ∘ h_{t-1}.
    The paper has tanh(x_t), with D = H: that is W_xn = I, b_xn = 0.

    >>> ys, h = MUT1(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products.
    """

    @staticmethod
    def equation(x, h, s):
        z, r = sigmoid(x.z), sigmoid(x.r + h.r)
        n = tanh(h.of(r * s.h).n + tanh(x.n))
        return z * n + (1 - z) * s.h


class MUT2(Gated, gates="z r n"):
    """MUT2 (Jozefowicz 2015, "An empirical exploration of recurrent network architectures").

    z, r = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·): update and reset gate;
    n = tanh(W_hn (r ∘ h_{t-1}) + b_hn + W_xn x_t + b_xn); h_t = z ∘ n + (1 − z) ∘ h_{t-1}.
    The paper has x_t itself in r, with D = H: that is W_xr = I, b_xr = 0. With general W_xr it is `GRUBefore`,
    whose z is 1 − z here.

    >>> ys, h = MUT2(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products.
    """

    @staticmethod
    def equation(x, h, s):
        z, r = sigmoid(x.z + h.z), sigmoid(x.r + h.r)
        n = tanh(x.n + h.of(r * s.h).n)
        return z * n + (1 - z) * s.h


class MUT3(Gated, gates="z r n"):
    """MUT3 (Jozefowicz 2015, "An empirical exploration of recurrent network architectures").

    z = σ(W_xz x_t + b_xz + W_hz tanh(h_{t-1}) + b_hz): update gate;
    r = σ(W_xr x_t + b_xr + W_hr h_{t-1} + b_hr): reset gate;
    n = tanh(W_hn (r ∘ h_{t-1}) + b_hn + W_xn x_t + b_xn); h_t = z ∘ n + (1 − z) ∘ h_{t-1}.

    >>> ys, h = MUT3(3, 5)(torch.zeros(2, 7, 3))

    Known limit: each step has two sequential products.
    """

    @staticmethod
    def equation(x, h, s):
        z, r = sigmoid(x.z + h.of(tanh(s.h)).z), sigmoid(x.r + h.r)
        n = tanh(x.n + h.of(r * s.h).n)
        return z * n + (1 - z) * s.h
