"""A recurrent matrix that stays orthogonal while it learns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.state import State
from everstep.wirings.cell_wrapper import CellWrapper


class Orthogonal(CellWrapper):
    """A cell whose recurrent matrix is U = Q exp(A − Aᵀ), always orthogonal (expRNN: Lezcano-Casado 2019).

    A is strictly upper triangular, initially 0; Q is fixed: rotations of pairs of units by angles drawn from −π … π
    (Henaff 2016). The matrix thus preserves the norm of the state, so that gradients vanish only through the
    activation; `ModReLU` avoids that better than tanh. U is computed once per sequence.

    >>> from everstep import RNN
    >>> cell = Orthogonal(RNN(3, 6, activation=ModReLU(6)))
    >>> ys, h = cell(torch.zeros(2, 7, 3))
    >>> torch.allclose(cell.matrix() @ cell.matrix().T, torch.eye(6), atol=1e-5)
    True

    Args:
        cell: a `Gated` one, of one gate fed by h and an even number of units; its `weight_hh` holds A from now on.

    Known limit: the exponential of an (H, H) matrix in every run, forward and backward.

    Raises:
        ValueError: a cell without one square `weight_hh`, or with an odd number of units.
    """

    turned: Tensor

    def __init__(self, cell: Cell):
        matrix = getattr(cell, "weight_hh", None)
        if not isinstance(matrix, nn.Parameter) or matrix.shape[0] != matrix.shape[1] or len(matrix) % 2:
            shape = None if matrix is None else tuple(matrix.shape)
            raise ValueError(
                f"Orthogonal: expected a cell whose weight_hh is one square matrix of an even number of units, "
                f"but that of {type(cell).__name__} is {shape}"
            )
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell
        self.register_buffer("turned", _rotations(len(matrix)).to(matrix))
        with torch.no_grad():
            matrix.zero_()

    def matrix(self) -> Tensor:
        """U (H, H)."""
        upper = self.cell.get_parameter("weight_hh").triu(1)
        matrix: Tensor = self.turned @ torch.linalg.matrix_exp(upper - upper.t())
        return matrix

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The cell's step with U."""
        changed = {"cell.weight_hh": self.matrix()}
        return torch.func.functional_call(_Step(self.cell), changed, (x, state))  # type: ignore[no-any-return]

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """U, then the cell over the whole sequence."""
        how = {"lengths": lengths, "resets": resets, "backend": backend}
        return torch.func.functional_call(  # type: ignore[no-any-return]
            self.cell, {"weight_hh": self.matrix()}, (xs, state), how
        )


class _Step(nn.Module):
    """A module whose call is the cell's step, for `functional_call`."""

    def __init__(self, cell: Cell):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.cell.step(x, state)


class ModReLU(nn.Module):
    """sign(a) · max(|a| + b, 0), with a learned b for each unit, initially 0 (Arjovsky 2016, for real numbers).

    >>> ModReLU(3)(torch.tensor([-2.0, 0.0, 1.0])).tolist()
    [-2.0, 0.0, 1.0]

    Args:
        units: H.
    """

    def __init__(self, units: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, a: Tensor) -> Tensor:
        """The equation."""
        return torch.sign(a) * torch.relu(torch.abs(a) + self.bias)


def _rotations(units: int) -> Tensor:
    """A block diagonal matrix of rotations of two units each."""
    angles = torch.empty(units // 2).uniform_(-math.pi, math.pi)
    cos, sin = angles.cos(), angles.sin()
    blocks: Tensor = torch.block_diag(*torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1))
    return blocks
