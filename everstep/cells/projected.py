"""An LSTM whose output is a projection of its memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

from everstep.cell import check_size
from everstep.cells.memory_lstm import Memory
from everstep.cells.parametric import Parametric
from everstep.state import State


class ProjectedLSTM(Parametric):
    """LSTM with a recurrent projection (Sak 2014, "Long short-term memory based recurrent neural network …").

    i, f, o = σ(W_x· x_t + b_x· + W_h· h_{t-1} + b_h·), g = tanh(likewise): input, forget and output gate, candidate;
    c_t = f ∘ c_{t-1} + i ∘ g: the memory, H numbers; h_t = W_hr (o ∘ tanh(c_t)): the output, P numbers.
    Equal to `torch.nn.LSTM(input_size, hidden_size, proj_size=P)`.

    >>> ys, (h, c) = ProjectedLSTM(3, 5, 2)(torch.zeros(2, 7, 3))
    >>> ys.shape, c.shape
    (torch.Size([2, 7, 2]), torch.Size([2, 5]))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of the memory.
        proj_size: features P of the output, fewer than H.
        **how: `bias`, `device` and `dtype` of the parameters.

    Parameters: `weight_ih` (4H, D), `weight_hh` (4H, P), `bias_ih` (4H), `bias_hh` (4H): the rows of i, f, g, o;
    `weight_hr` (P, H).

    Raises:
        ValueError: a size below 1, or `proj_size` not below `hidden_size`.

    Known limit: it has only the recurrent one of the paper's two projections; the other is a `torch.nn.Linear`
    afterwards. The paper's gates also have peepholes (`PeepholeLSTM`).
    """

    gates = ("i", "f", "g", "o")
    weight_ih: Tensor
    weight_hh: Tensor
    weight_hr: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, proj_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        self.output_size = check_size(self, "proj_size", proj_size)
        if proj_size >= hidden_size:
            raise ValueError(
                f"ProjectedLSTM: proj_size should be smaller than hidden_size={hidden_size}, but is {proj_size}"
            )
        rows = 4 * hidden_size
        shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, proj_size), "bias_ih": (rows,)}
        self.declare({**shapes, "bias_hh": (rows,), "weight_hr": (proj_size, hidden_size)}, **how)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros: h (batch, P) and c (batch, H)."""
        return Memory(like.new_zeros(batch, self.output_size), like.new_zeros(batch, self.hidden_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        h, c = state
        both = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = both.chunk(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = F.linear(sigmoid(o) * tanh(c), self.weight_hr)
        return h, Memory(h, c)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, {self.output_size}"
