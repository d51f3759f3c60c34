"""LSTMs whose gates read the memory, or something other than the output."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.parametric import Parametric
from everstep.equation import Gated
from everstep.state import State


class Memory(NamedTuple):
    """The vector h that the gates read, and the memory c, each (batch, H)."""

    h: Tensor
    c: Tensor


class _Peepholes(Parametric):
    """Gates that see the memory through peepholes, as `PeepholeLSTM` has them; what the output is, a subclass says."""

    gates, blocks = ("i", "f", "g", "o"), {"peephole": ("i", "f", "o")}
    weight_ih: Tensor
    weight_hh: Tensor
    peephole: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        self.declare(self.shapes(input_size, hidden_size), **how)

    @staticmethod
    def shapes(d: int, h: int) -> dict[str, tuple[int, ...]]:
        """Of the parameters, for D and H."""
        return {"weight_ih": (4 * h, d), "weight_hh": (4 * h, h), "peephole": (3 * h,), "bias_ih": (4 * h,)}

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Memory(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.hidden_size))

    def remember(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The output gate and the new memory."""
        h, c = state
        i, f, g, o = (F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh)).chunk(4, -1)
        p_i, p_f, p_o = self.peephole.chunk(3)
        c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
        return sigmoid(o + p_o * c), c


class PeepholeLSTM(_Peepholes):
    """LSTM with peepholes (Gers 2002, "Learning precise timing with LSTM recurrent networks").

    i, f = σ(W_· x_t + U_· h_{t-1} + b_· + p_· ∘ c_{t-1}): input and forget gate; g = tanh(W_g x_t + U_g h_{t-1} + b_g);
    c_t = f ∘ c_{t-1} + i ∘ g; o = σ(W_o x_t + U_o h_{t-1} + b_o + p_o ∘ c_t): it sees the new c; h_t = o ∘ tanh(c_t).

    >>> ys, (h, c) = PeepholeLSTM(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (4H, D), `weight_hh` (4H, H), `bias_ih` (4H): the rows of i, f, g, o; `peephole` (3H): p of
    i, f, o.

    Known limit: no vendor kernel computes it. Gradients flow through the peepholes, which the paper cuts.
    """

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        o, c = self.remember(x, state)
        h = o * tanh(c)
        return h, Memory(h, c)


class ResLSTM(_Peepholes):
    """Residual LSTM (Kim 2017, "Residual LSTM: design of a deep recurrent architecture for distant speech …").

    i, f, o and c_t as in `PeepholeLSTM`; h_t = o ∘ (P tanh(c_t) + R x_t): a projection of the memory, and a shortcut
    around the layer, which the output gate scales too.

    >>> ys, (h, c) = ResLSTM(3, 5)(torch.zeros(2, 7, 3))

    Parameters: those of `PeepholeLSTM`; `weight_ho` (H, H): P; `weight_io` (H, D): R.

    Known limit: R is always learned; for D = H it could be the identity.
    """

    weight_ho: Tensor
    weight_io: Tensor

    @staticmethod
    def shapes(d: int, h: int) -> dict[str, tuple[int, ...]]:
        """Of the parameters, for D and H."""
        return {**_Peepholes.shapes(d, h), "weight_ho": (h, h), "weight_io": (h, d)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        o, c = self.remember(x, state)
        h = o * (F.linear(tanh(c), self.weight_ho) + F.linear(x, self.weight_io))
        return h, Memory(h, c)


class MCLSTM(Parametric):
    """Memory-controller LSTM (Ben-Ari & Shwartz-Ziv 2017, "Sequence modeling using a memory controller extension …").

    The gates read a separate control vector instead of the output.
    With a· = W_· x_t + U_· v_{t-1} + b_·: f, i, o, m = σ(a_·), g = tanh(a_g); c_t = f ∘ c_{t-1} + i ∘ g;
    h_t = o ∘ tanh(c_t): the output; v_t = m ∘ tanh(c_t): the control vector, which is fed back instead.

    >>> ys, (v, c) = MCLSTM(3, 5)(torch.zeros(2, 7, 3))

    Parameters: `weight_ih` (5H, D), `weight_hh` (5H, H), `bias_ih` (5H): the rows of f, i, o, m, g.

    Known limit: a quarter more parameters than an LSTM of the same size. The state's names are h (for v) and c.
    """

    gates = ("f", "i", "o", "m", "g")
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        rows = 5 * hidden_size
        self.declare({"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias_ih": (rows,)}, **how)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Memory(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.hidden_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        v, c = state
        f, i, o, m, g = (F.linear(x, self.weight_ih, self.bias_ih) + F.linear(v, self.weight_hh)).chunk(5, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        seen = tanh(c)
        return sigmoid(o) * seen, Memory(sigmoid(m) * seen, c)


class WMCLSTM(Gated, gates="i f g o p q r", state="h c"):
    """LSTM with working memory connections (Landi 2021, "Working memory connections for LSTM").

    i, f = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h· + tanh(V_· c_{t-1} + d_·)): input and forget gate;
    g = tanh(W_xg x_t + b_xg + W_hg h_{t-1} + b_hg); c_t = f ∘ c_{t-1} + i ∘ g;
    o = σ(W_xo x_t + b_xo + W_ho h_{t-1} + b_ho + tanh(V_o c_t + d_o)); h_t = o ∘ tanh(c_t).
    V and d of i, f, o are the rows of p, q, r: peepholes with full matrices, squashed. The paper has no d.

    >>> ys, (h, c) = WMCLSTM(3, 5)(torch.zeros(2, 7, 3))

    Known limit: nearly twice the recurrent parameters of an LSTM, and one product that depends on c_t.
    """

    @staticmethod
    def equation(x, h, s):
        i = sigmoid(x.i + h.i + tanh(h.of(s.c).p))
        f = sigmoid(x.f + h.f + tanh(h.of(s.c).q))
        c = f * s.c + i * tanh(x.g + h.g)
        return sigmoid(x.o + h.o + tanh(h.of(c).r)) * tanh(c), c
