"""An LSTM whose input and last output gate each other before the step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cells.memory_lstm import Memory
from everstep.cells.parametric import Parametric
from everstep.state import State


class MogrifierLSTM(Parametric):
    """Mogrifier LSTM (Melis, Kočiský & Blunsom 2020).

    x^{-1} = x_t, h^0 = h_{t-1}; for i = 1 … r: x^i = 2 σ(Q^i h^{i-1}) ∘ x^{i-2} where i is odd,
    h^i = 2 σ(R^i x^{i-1}) ∘ h^{i-2} where it is even. An LSTM's step reads the last x and h:
    i, f, o = σ(W_x· x + b_x· + W_h· h + b_h·), g = tanh(likewise); c_t = f ∘ c_{t-1} + i ∘ g; h_t = o ∘ tanh(c_t).

    >>> ys, (h, c) = MogrifierLSTM(3, 5)(torch.zeros(2, 7, 3))
    >>> narrow = MogrifierLSTM(3, 5, rounds=4, rank=2)

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        rounds: r; 0 gives an LSTM.
        rank: k, the rank of each Q^i = L^i M^i and R^i, with L^i (·, k) and M^i (k, ·); None: full matrices.
        **how: `bias`, `device` and `dtype` of the parameters.

    Parameters: `weight_ih` (4H, D), `weight_hh` (4H, H), `bias_ih` (4H), `bias_hh` (4H): the rows of i, f, g, o;
    `weight_q` (⌈r/2⌉ D, H) and `weight_r` (⌊r/2⌋ H, D), the matrices one below the other; with a rank `left_q`
    (⌈r/2⌉ D, k), `right_q` (⌈r/2⌉ k, H), `left_r` (⌊r/2⌋ H, k), `right_r` (⌊r/2⌋ k, D). All uniform in ±1/√H.

    Raises:
        ValueError: a size below 1, rounds below 0, or a rank below 1.

    Known limit: a step has r + 1 sequential products, so that it is that much slower than an LSTM's.
    """

    gates = ("i", "f", "g", "o")
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, rounds: int = 5, rank: int | None = None, **how: Any):
        super().__init__(input_size, hidden_size)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
            raise ValueError(f"MogrifierLSTM: rounds should be a whole number ≥ 0, but is {rounds!r}")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ValueError(f"MogrifierLSTM: rank should be a whole number ≥ 1 or None, but is {rank!r}")
        self.rounds, self.rank = rounds, rank
        d, h, rows = input_size, hidden_size, 4 * hidden_size
        shapes = {"weight_ih": (rows, d), "weight_hh": (rows, h), "bias_ih": (rows,), "bias_hh": (rows,)}
        for name, times, wide, from_size in (("q", (rounds + 1) // 2, d, h), ("r", rounds // 2, h, d)):
            if times and rank is None:
                shapes[f"weight_{name}"] = (times * wide, from_size)
            elif times and rank is not None:
                shapes |= {f"left_{name}": (times * wide, rank), f"right_{name}": (times * rank, from_size)}
        self.declare(shapes, **how)

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """The matrices of each round, q1, r2, q3, and so on."""
        of_q = tuple(f"q{number}" for number in range(1, self.rounds + 1, 2))
        of_r = tuple(f"r{number}" for number in range(2, self.rounds + 1, 2))
        parts = ("weight",) if self.rank is None else ("left", "right")
        return {f"{part}_{name}": of for part in parts for name, of in (("q", of_q), ("r", of_r)) if of}

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Memory(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.hidden_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        h, c = state
        for number in range(self.rounds):
            if number % 2 == 0:
                x = 2 * sigmoid(self._asked("q", number // 2, h, self.input_size)) * x
            else:
                h = 2 * sigmoid(self._asked("r", number // 2, x, self.hidden_size)) * h
        both = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = both.chunk(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return h, Memory(h, c)

    def _asked(self, name: str, number: int, read: Tensor, wide: int) -> Tensor:
        """The product with the matrix of a round, (batch, wide)."""
        if self.rank is None:
            return F.linear(read, getattr(self, f"weight_{name}")[number * wide : (number + 1) * wide])
        right = getattr(self, f"right_{name}")[number * self.rank : (number + 1) * self.rank]
        left = getattr(self, f"left_{name}")[number * wide : (number + 1) * wide]
        return F.linear(F.linear(read, right), left)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rounds={self.rounds}, rank={self.rank}"
