"""The two cells of xLSTM (Beck 2024): exponential gates, kept in range by a state m, the logarithm of their scale."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell, check_size
from everstep.parameters import uniform_by_width
from everstep.state import State

NOTHING = -1e4
"""The first m of `SLSTM`: e^m = 0, so that the state before the first step has no weight."""


class SLSTMState(NamedTuple):
    """h, c, n, m, each (batch, H); c and n are the paper's times e^(−m)."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class MLSTMState(NamedTuple):
    """C (batch, heads, d, d), n (batch, heads, d), m (batch, heads); C and n are the paper's times e^(−m)."""

    C: Tensor
    n: Tensor
    m: Tensor


class _XLSTM(Cell):
    """Base class with sizes, heads and the forget gate."""

    def __init__(self, input_size: int, hidden_size: int, heads: int, forget: str):
        super().__init__(input_size, hidden_size)
        name = type(self).__name__
        if hidden_size % check_size(self, "heads", heads):
            raise ValueError(f"{name}: heads should divide hidden_size={hidden_size}, but is {heads}")
        if forget not in ("sigmoid", "exp"):
            raise ValueError(f"{name}: forget should be 'sigmoid' or 'exp', but is {forget!r}")
        self.hidden_size, self.heads, self.forget = hidden_size, heads, forget

    def reset_parameters(self) -> None:
        """Every parameter uniform in ±1/√H."""
        uniform_by_width(self.parameters(), self.hidden_size)

    def rescaled(self, i: Tensor, f: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From ĩ, f̃ and the old m: i and f, scaled so that both are at most 1, and the new m."""
        kept = m + (f if self.forget == "exp" else -F.softplus(-f))
        m = torch.maximum(kept, i)
        return torch.exp(i - m), torch.exp(kept - m), m

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, heads={self.heads}, forget={self.forget}"


class SLSTM(_XLSTM):
    """sLSTM, the cell of xLSTM with scalar memories (Beck 2024).

    z = tanh(z̃), i = e^ĩ, f = σ(f̃) or e^f̃, o = σ(õ), with ·̃ = W_· x_t + R_· h_{t-1} + b_· for each:
    candidate, input, forget and output gate; R_· is block diagonal, one block per head.
    c_t = f ∘ c_{t-1} + i ∘ z; n_t = f ∘ n_{t-1} + i; h_t = o ∘ c_t / n_t, with c_0 = n_0 = 0.
    To keep the exponentials in range, c and n are stored times e^(−m), m_t = max(log f + m_{t-1}, ĩ);
    h does not depend on m.

    >>> ys, (h, c, n, m) = SLSTM(3, 6, heads=2)(torch.zeros(2, 7, 3))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        heads: blocks of the recurrent matrices; a divisor of H.
        forget: "sigmoid" or "exp", the forget gate.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (4H, D) and `bias` (4H,): the rows of z, i, f, o; `weight_hh` (heads, 4·H/heads, H/heads):
    those of each head; initially uniform in ±1/√H.

    Known limit: the surrounding block (convolution, group norm, projections) is not included. A state that is not
    the initial one needs n > 0.
    """

    gates = ("z", "i", "f", "o")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        heads: int = 1,
        forget: Literal["sigmoid", "exp"] = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size, heads, forget)
        width = hidden_size // heads
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(heads, 4 * width, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros, and e^m = 0."""
        zeros = like.new_zeros(batch, self.hidden_size)
        return SLSTMState(zeros, zeros.clone(), zeros.clone(), torch.full_like(zeros, NOTHING))

    def step(self, x: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        """The equation, on c and n times e^(−m)."""
        h, c, n, m = state
        parts = [F.linear(part, self.weight_hh[k]).chunk(4, -1) for k, part in enumerate(h.chunk(self.heads, -1))]
        again = torch.cat([head[gate] for gate in range(4) for head in parts], -1)
        z, i, f, o = (F.linear(x, self.weight_ih, self.bias) + again).chunk(4, -1)
        i, f, m = self.rescaled(i, f, m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * (c / n)
        return h, SLSTMState(h, c, n, m)


class MLSTM(_XLSTM):
    """mLSTM, the cell of xLSTM with a matrix memory (Beck 2024).

    q = W_q x_t + b_q, k = W_k x_t / √d + b_k, v = W_v x_t + b_v: query, key and value; o = σ(W_o x_t + b_o);
    for each head, of d = H/heads features: i = e^(w_i·x_t + b_i), f = σ(w_f·x_t + b_f) or its exponential, two numbers;
    C_t = f C_{t-1} + i v kᵀ; n_t = f n_{t-1} + i k; h_t = o ∘ C_t q / max(|n_tᵀ q|, 1).
    To keep the exponentials in range, C and n are stored times e^(−m), m_t = max(log f + m_{t-1}, log i), m_0 = 0;
    h does not depend on m.

    >>> ys, (C, n, m) = MLSTM(3, 6, heads=2)(torch.zeros(2, 7, 3))
    >>> C.shape
    torch.Size([2, 2, 3, 3])

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        heads: memories; a divisor of H.
        forget: "sigmoid" or "exp", the forget gate.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (4H + 2·heads, D) and `bias` (4H + 2·heads,): the rows of q, k, v, o, i, f;
    initially uniform in ±1/√H.

    Known limit: the surrounding block (convolution, group norm, projections) is not included. It is affine in (C, n),
    but runs as a loop: a parallel scan would hold a matrix for every step.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        heads: int = 1,
        forget: Literal["sigmoid", "exp"] = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size, heads, forget)
        rows = 4 * hidden_size + 2 * heads
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def blocks(self) -> dict[str, dict[str, int]]:
        """The gates i and f have one row per head."""
        rows = dict.fromkeys("qkvo", self.hidden_size) | dict.fromkeys("if", self.heads)
        return {"weight_ih": rows, "bias": rows}

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        d = self.hidden_size // self.heads
        shapes = ((self.heads, d, d), (self.heads, d), (self.heads,))
        return MLSTMState(*(like.new_zeros(batch, *shape) for shape in shapes))

    def step(self, x: Tensor, state: MLSTMState) -> tuple[Tensor, MLSTMState]:
        """The equation, on C and n times e^(−m)."""
        C, n, m = state
        d = self.hidden_size // self.heads
        sizes = [self.hidden_size] * 4 + [self.heads] * 2
        # k's rows are scaled by 1/√d, its bias is not
        qx, kx, vx, ox, ix, fx = F.linear(x, self.weight_ih).split(sizes, -1)
        qb, kb, vb, ob, ib, fb = self.bias.split(sizes)
        q, k, v = (part.view(-1, self.heads, d) for part in (qx + qb, kx / math.sqrt(d) + kb, vx + vb))
        i, f, m = self.rescaled(ix + ib, fx + fb, m)
        C = f[..., None, None] * C + i[..., None, None] * (v[..., :, None] * k[..., None, :])
        n = f[..., None] * n + i[..., None] * k
        # max(|n q|, 1), with both sides scaled by e^(−m), unless that is large: it never overflows
        scale = torch.exp(m.clamp(max=0))
        total = torch.maximum((n * q).sum(-1).abs() * scale, torch.exp(-m.clamp(min=0)))
        h = (C * q[..., None, :]).sum(-1) * (scale / total)[..., None]
        return torch.sigmoid(ox + ob) * h.flatten(1), MLSTMState(C, n, m)
