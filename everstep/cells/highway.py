"""The recurrent highway network: several layers within one step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn, sigmoid, tanh
from torch.nn import functional as F

from everstep.cell import check_size
from everstep.cells.parametric import Parametric


class RHN(Parametric):
    """Recurrent highway network (Zilly 2017, "Recurrent highway networks").

    s_0 = h_{t-1}; for l = 1 … L: with a· = R_·l s_{l-1} + b_·l, and W_· x_t added where l = 1,
    n = tanh(a_n), k = σ(a_k): transform gate, s_l = n ∘ k + s_{l-1} ∘ e; h_t = s_L. The carry gate e is 1 − k if
    `coupled`, else σ(a_e). L = `depth`.

    >>> ys, h = RHN(3, 5, depth=2)(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        depth: layers L within a step.
        coupled: whether the carry gate is 1 − k, as in the paper's experiments.
        transform_bias: initial value of b_kl; below 0, so that most is carried (−2 or −4 in the authors' code).
        **how: bias, device, dtype.

    Parameters, with G = 2 gates (n, k), or 3 (n, k, e): `weight_ih` (G·H, D); `weight_hh` (L·G·H, H) and `bias_hh`
    (L·G·H): layer after layer.

    Known limits: each step has L sequential products; without coupling the state may grow without bound.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_hh: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        depth: int = 3,
        coupled: bool = True,
        transform_bias: float = -2.0,
        **how: Any,
    ):
        super().__init__(input_size, hidden_size)
        self.depth, self.coupled = check_size(self, "depth", depth), coupled
        self.transform_bias = transform_bias
        gates = 2 if coupled else 3
        rows = depth * gates * hidden_size
        shapes = {"weight_ih": (gates * hidden_size, input_size), "weight_hh": (rows, hidden_size), "bias_hh": (rows,)}
        self.declare(shapes, **how)

    @property
    def gates(self) -> tuple[str, ...]:
        """n1 is the candidate of the first layer, k2 the transform gate of the second."""
        names = "nk" if self.coupled else "nke"
        return tuple(f"{name}{layer}" for layer in range(1, self.depth + 1) for name in names)

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """x feeds only the first layer."""
        return {"weight_ih": self.gates[: len(self.gates) // self.depth]}

    def reset_parameters(self) -> None:
        """The biases of the transform gates at `transform_bias`, every other parameter uniform in ±1/√H."""
        super().reset_parameters()
        if self.bias_hh is not None:
            nn.init.constant_(self.bias_hh.view(self.depth, -1, self.hidden_size)[:, 1], self.transform_bias)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        biases = [None] * self.depth if self.bias_hh is None else self.bias_hh.chunk(self.depth)
        h = state
        for layer, (weight, bias) in enumerate(zip(self.weight_hh.chunk(self.depth), biases, strict=True)):
            a = F.linear(h, weight, bias)
            a = a + F.linear(x, self.weight_ih) if layer == 0 else a
            if self.coupled:
                n, k = a.chunk(2, -1)
                carry = sigmoid(-k)  # 1 − σ(k), without the cancellation
            else:
                n, k, e = a.chunk(3, -1)
                carry = sigmoid(e)
            h = tanh(n) * sigmoid(k) + h * carry
        return h, h

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, depth={self.depth}, coupled={self.coupled}"
