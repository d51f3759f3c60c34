"""Starts for the parameters of an equation's cell (`Gated`), gate by gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everstep.cells.rnn import simple_kernel
from everstep.equation import Gated


def init_identity(cell: Gated, scale: float = 1.0, gates: Sequence[str] | None = None) -> None:
    """Recurrent matrices scale·I and biases 0: with ReLU, the initialisation of Le 2015 (IRNN).

    >>> from everstep import RNN
    >>> cell = RNN(3, 2, activation=torch.relu)
    >>> init_identity(cell, 0.5)
    >>> cell.weight_hh
    Parameter containing:
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], requires_grad=True)

    Args:
        cell: any `Gated` cell.
        scale: of the identity; Le 2015 takes 0.01 where long memory would hurt.
        gates: whose matrices and biases; all that the equation reads from h if None.

    Raises:
        ValueError: a gate that h does not feed.
    """
    with torch.no_grad():
        for gate, matrix in _recurrent(cell, gates):
            matrix.copy_(scale * torch.eye(cell.hidden_size))
            _set_bias(cell, gate, 0.0)


def init_orthogonal(cell: Gated, gain: float = 1.0, gates: Sequence[str] | None = None) -> None:
    """Recurrent matrices gain·Q, with Q a random orthogonal matrix for each gate (Saxe 2014).

    >>> from everstep import RNN
    >>> cell = RNN(3, 4)
    >>> init_orthogonal(cell)
    >>> torch.allclose(cell.weight_hh @ cell.weight_hh.T, torch.eye(4), atol=1e-6)
    True

    Args:
        cell: any `Gated` cell.
        gain: a factor on Q.
        gates: the gates to initialise; all that the equation reads from h if None.

    Raises:
        ValueError: a gate that h does not feed.
    """
    with torch.no_grad():
        for _, matrix in _recurrent(cell, gates):
            matrix.copy_(nn.init.orthogonal_(torch.empty(matrix.shape), gain))


def init_bias(cell: Gated, gate: str, value: float | Tensor) -> None:
    """The bias of one gate: `init_bias(cell, "f", 1.0)` is the forget bias (Gers 2000; Jozefowicz 2015).

    If a gate has two biases, one is set to the value and the other to 0.

    >>> from everstep import LSTM
    >>> cell = LSTM(3, 2)
    >>> init_bias(cell, "f", 1.0)
    >>> cell.bias_ih[2:4]
    tensor([1., 1.], grad_fn=<SliceBackward0>)

    Args:
        cell: any `Gated` cell.
        gate: its name.
        value: one number, or one per unit.

    Raises:
        ValueError: a gate that has no bias.
    """
    with torch.no_grad():
        if not _set_bias(cell, gate, value):
            raise ValueError(f"init_bias: {cell} has no bias for gate {gate!r}")


def init_chrono(cell: Gated, longest: int, forget: str = "f", input: str | None = "i") -> None:
    """Chrono initialisation (Tallec & Ollivier 2018): time constants spread over 1 … `longest` steps.

    b_forget = log u with u ~ uniform(1, longest − 1) for each unit; b_input = −b_forget.

    >>> from everstep import GRU, LSTM
    >>> init_chrono(LSTM(3, 5), longest=100)
    >>> init_chrono(GRU(3, 5), longest=100, forget="z", input=None)

    Args:
        cell: any `Gated` cell.
        longest: the longest time that is expected to matter, in steps; above 2.
        forget: the gate whose value is the share that is kept.
        input: the gate of what is written, or None if `forget` decides that too.

    Raises:
        ValueError: a gate that has no bias, or `longest` not above 2.
    """
    if not longest > 2:
        raise ValueError(f"init_chrono: longest should be above 2, but is {longest}")
    bias = torch.empty(cell.hidden_size).uniform_(1, longest - 1).log()
    init_bias(cell, forget, bias)
    if input is not None:
        init_bias(cell, input, -bias)


class IRNN(Gated, gates="a", vendor=simple_kernel):
    """A simple network of rectified linear units that starts as the identity (Le 2015).

    h_t = φ(W x_t + b + U h_{t-1}), with φ = `activation`, ReLU unless told otherwise. At first U = scale·I
    (`init_identity`), every bias is 0, and W is normal with standard deviation 0.001.

    >>> ys, h = IRNN(3, 5)(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t and H of h_t.
        scale: of the identity.
        **options: activation, and those of `RNN`: bias, device, dtype.

    Known limit: nothing bounds h; clip the gradient, as the paper does.
    """

    @staticmethod
    def equation(x, h, s, *, activation=torch.relu):
        return activation(x.a + h.a)

    def __init__(self, input_size: int, hidden_size: int, *, scale: float = 1.0, **options: Any):
        self._scale = scale
        super().__init__(input_size, hidden_size, **options)

    def reset_parameters(self) -> None:
        """U = scale·I, b = 0, W normal."""
        super().reset_parameters()
        assert self.weight_ih is not None
        nn.init.normal_(self.weight_ih, std=0.001)
        init_identity(self, self._scale)


def _recurrent(cell: Gated, gates: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    """Each gate with its rows of the recurrent matrix."""
    chosen = cell.hidden_gates if gates is None else gates
    if cell.weight_hh is None or (unknown := [gate for gate in chosen if gate not in cell.hidden_gates]):
        raise ValueError(f"{cell}: h feeds the gates {list(cell.hidden_gates)}, not {unknown}")
    return [(gate, cell.gate_rows(cell.weight_hh, gate, cell.hidden_gates)) for gate in chosen]


def _set_bias(cell: Gated, gate: str, value: float | Tensor) -> bool:
    """Set the gate's first bias to `value` and its second to 0; return whether it has a bias."""
    pairs = ((cell.bias_ih, cell.input_gates), (cell.bias_hh, cell.hidden_gates))
    rows = [cell.gate_rows(vector, gate, gates) for vector, gates in pairs if vector is not None and gate in gates]
    for place, row in enumerate(rows):
        row.copy_(torch.as_tensor(value if place == 0 else 0.0).expand(len(row)))
    return bool(rows)
