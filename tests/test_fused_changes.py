"""Cells that change, are copied, shared or saved, and their compiled steps."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fused import make
from test_laws import inputs
from torch import Tensor, nn

import everstep as es
from everstep.native import toolchain

F64 = torch.float64
pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("how", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell)), "saved"])
def test_copies_of_a_cell_that_has_run(how: Any) -> None:
    cell = make(es.LSTM, 3, 5)
    xs = inputs(cell, 2, 4)
    want = es.scan(cell, xs, backend="fused")[0]
    if how == "saved":
        file = io.BytesIO()
        torch.save(cell, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = how(cell)
    assert torch.equal(es.scan(other, xs, backend="fused")[0], want)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(2)
    assert torch.equal(es.scan(cell, xs, backend="fused")[0], want)
    assert not torch.equal(es.scan(other, xs, backend="fused")[0], want)


class Options(es.Cell):
    """Options of many kinds."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.linear = nn.Linear(3, 4)
        self.alpha, self.how, self.table = 0.5, "tanh", {"scales": [1.0, 2.0]}
        self.activation: Callable[[Tensor], Tensor] = torch.sigmoid
        self.constant = torch.full((4,), 0.25, dtype=F64)

    def step(self, x, h):
        inner = self.linear(x) * self.table["scales"][0] + self.alpha * h + self.constant
        new = self.activation(getattr(torch, self.how)(inner))
        return (new if self.training else 2 * new), new


def test_a_change_of_the_cell_is_noticed() -> None:
    cell = Options().double()
    xs = inputs(cell, 2, 5)
    seen = []

    def check() -> None:
        seen.append(es.scan(cell, xs, backend="fused")[0])
        torch.testing.assert_close(seen[-1], es.scan(cell, xs, backend="reference")[0], rtol=0, atol=1e-9)

    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: setattr(cell, "alpha", 0.25),
        lambda: setattr(cell, "how", "sin"),
        lambda: cell.table["scales"].__setitem__(0, 3.0),
        lambda: setattr(cell, "activation", torch.tanh),
        lambda: setattr(cell, "activation", nn.Softplus()),
        lambda: cell.eval(),
        lambda: setattr(cell, "constant", torch.full((4,), -0.5, dtype=F64)),
        lambda: cell.constant.mul_(2),
        lambda: cell.linear.weight.data.mul_(1.5),
        lambda: setattr(cell, "linear", nn.Linear(3, 4, bias=False).double()),
        lambda: setattr(cell, "linear", nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 4)).double()),
    ]
    for change in changes:
        change()
        check()
        assert len(seen) < 2 or not torch.equal(seen[-1], seen[-2])


@pytest.mark.sanitize
def test_functions_that_come_and_go_are_told_apart() -> None:
    cell = Options().double()
    xs = inputs(cell, 1, 3)
    for k in range(6):
        cell.activation = lambda v, k=k: v * k
        got = es.scan(cell, xs, backend="fused")[0]
        torch.testing.assert_close(got, es.scan(cell, xs, backend="reference")[0], rtol=0, atol=1e-9)


def test_an_optimizer_step_is_seen() -> None:
    cell = make()
    xs = inputs(cell, 2, 4)
    optimizer = torch.optim.SGD(cell.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        es.scan(cell, xs, backend="fused")[0].square().sum().backward()
        optimizer.step()
        torch.testing.assert_close(
            es.scan(cell, xs, backend="fused")[0], es.scan(cell, xs, backend="reference")[0], rtol=0, atol=1e-9
        )
