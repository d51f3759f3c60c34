"""The gated recurrent unit over trees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.trees.composition import Children, Composition


class ChildSumTreeGRU(Composition):
    """Tree-GRU for any number of children, whose order does not matter (Zhou 2016, "Modelling sentence pairs with
    tree-structured attentive encoder").

    Of a node with children k: h̃ = Σ_k h_k; of each child r_k = σ(W_r x + b_r + U_r h_k); z = σ(W_z x + b_z + U_z h̃);
    n = tanh(W_n x + b_n + U_n Σ_k r_k ∘ h_k); h = (1 − z) ∘ n + z ∘ h̃. Of a leaf h = (1 − z) ∘ n.

    On a chain it is the `GRUBefore` of the same weights.

    >>> from everstep.data import parse_tree
    >>> ys, h = es.Tree(ChildSumTreeGRU(3, 5))(torch.zeros(3, 3), es.Forest.of([parse_tree("(S (A x) (B y) (C z))")]))
    >>> ys.shape, h.shape
    (torch.Size([4, 5]), torch.Size([1, 5]))

    Args:
        input_size, hidden_size: features D of x and H of h.
        **how: bias, device, dtype.

    Parameters, in the order r z n of `torch.nn.GRU`: `weight_ih` (3H, D), `weight_hh` (3H, H), `bias` (3H).

    Known limit: h̃ is a sum, so that where z is near 1 h grows with the number of nodes below.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, **how: Any):
        super().__init__(input_size, hidden_size)
        rows = 3 * hidden_size
        self.declare({"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias": (rows,)}, **how)

    def leaf(self, x: Tensor) -> Tensor:
        """Without children: h = (1 − z) ∘ n."""
        size = self.output_size
        z, n = F.linear(x, self.weight_ih[size:], None if self.bias is None else self.bias[size:]).chunk(2, 1)
        return torch.sigmoid(-z) * torch.tanh(n)

    def inputs(self, x: Tensor) -> Tensor:
        """W x + b, (n, 3H)."""
        return F.linear(x, self.weight_ih, self.bias)

    def combine(self, x: Tensor, children: Children) -> Tensor:
        """The equations."""
        u_r, u_z, u_n = self.weight_hh.chunk(3)
        h: Tensor = children.states
        x_r, x_z, x_n = x.chunk(3, 1)
        total = children.sum(h)
        r = torch.sigmoid(children.spread(x_r) + F.linear(h, u_r))
        z = torch.sigmoid(x_z + F.linear(total, u_z))
        n = torch.tanh(x_n + F.linear(children.sum(r * h), u_n))
        return (1 - z) * n + z * total
