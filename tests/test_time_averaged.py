"""The gradient of shared parameters averaged over time."""

from __future__ import annotations

import pytest
import torch
from laws import D, H
from torch import Tensor

import everstep as es

F64 = torch.float64


@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 0, 5])])
def test_gradient_averaged_over_time(lengths: Tensor | None) -> None:
    torch.manual_seed(3)
    cell = es.LSTM(D, H).double()
    averaged = es.TimeAveraged(cell)
    xs = torch.randn(3, 7, D, dtype=F64, requires_grad=True)
    found = []
    for layer in (cell, averaged):
        ys, _ = layer(xs, lengths=lengths)
        found.append([ys.detach(), *torch.autograd.grad(ys.square().sum(), [xs, *cell.parameters()])])
    steps = 7 if lengths is None else 4  # the mean length
    plain, mean = found
    assert torch.equal(plain[0], mean[0])
    torch.testing.assert_close(mean[1], plain[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mean[2:], [g / steps for g in plain[2:]], rtol=1e-12, atol=1e-14)
    assert list(averaged.state_dict()) == [f"cell.{name}" for name in cell.state_dict()]


def test_average_over_time_takes_cells() -> None:
    with pytest.raises(TypeError, match="expected a Cell, but got Bidirectional"):
        es.TimeAveraged(es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4)))  # type: ignore[arg-type]
    ys, _ = es.TimeAveraged(es.GRU(3, 4))(torch.zeros(2, 5, 3), lengths=torch.tensor([0, 0]))
    assert bool((ys == 0).all())
