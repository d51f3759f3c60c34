"""The network with a slow context layer beside its hidden layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, sigmoid
from torch.nn import functional as F

from everstep.cell import check_size
from everstep.cells.parametric import Parametric, between
from everstep.state import State


class Context(NamedTuple):
    """The hidden layer h (batch, H) and the context s (batch, C)."""

    h: Tensor
    s: Tensor


class SCRN(Parametric):
    """Structurally constrained network (Mikolov 2014, "Learning longer memory in recurrent neural networks").

    s_t = (1 − α) B x_t + α s_{t-1}: context, a running mean of inputs, α = `alpha`;
    h_t = σ(P s_t + A x_t + R h_{t-1}): hidden layer. The output is [h_t; s_t], H + C features, so that a linear head
    gives the paper's U h_t + V s_t. The authors' code, SCRNNs, has P s_{t-1} in mfactory.lua, but P s_t in the comment
    above it, as in the paper; torchrecurrent 0.2.5 feeds back tanh(U h_t + V s_t) instead of h_t.

    >>> ys, (h, s) = SCRN(3, 5, context_size=2)(torch.zeros(2, 7, 3))
    >>> ys.shape
    torch.Size([2, 7, 7])

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        context_size: features C of s_t; H if not given.
        alpha: the fraction of the context that is kept, in [0, 1]; 0.95 in the authors' code.
        **how: device, dtype. The paper has no biases.

    Parameters: `weight_ih` (C + H, D): the rows of B, then of A; `weight_hh` (H, C + H): [P, R].

    Known limit: α is shared by all units and not learned, as in most of the paper.
    """

    weight_ih: Tensor
    weight_hh: Tensor

    def __init__(
        self, input_size: int, hidden_size: int, *, context_size: int | None = None, alpha: float = 0.95, **how: Any
    ):
        super().__init__(input_size, hidden_size)
        self.context_size = hidden_size if context_size is None else check_size(self, "context_size", context_size)
        self.alpha = between(self, "alpha", alpha, 0, 1)
        self.output_size = hidden_size + self.context_size
        both = self.output_size
        self.declare({"weight_ih": (both, input_size), "weight_hh": (hidden_size, both)}, **how)

    @property
    def blocks(self) -> dict[str, dict[str, int]]:
        """The rows of B and of A, by the state that they feed."""
        return {"weight_ih": {"s": self.context_size, "h": self.hidden_size}}

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return Context(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, self.context_size))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        h, s = state
        slow, fast = F.linear(x, self.weight_ih).split([self.context_size, self.hidden_size], -1)
        s = (1 - self.alpha) * slow + self.alpha * s
        h = sigmoid(fast + F.linear(torch.cat([s, h], -1), self.weight_hh))
        return torch.cat([h, s], -1), Context(h, s)
