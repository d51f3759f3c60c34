"""UORO is noisy, but right in the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.wirings.influence import RankOne, RankOneState

F64 = torch.float64


def standard_errors(cell: es.Cell, xs: Tensor, groups: int = 40, rows: int = 500) -> Tensor:
    """How many standard errors the mean gradient of `groups` · `rows` draws lies off BPTT's, by coordinate."""
    online = es.Online(cell, "uoro")
    draws = []
    for _ in range(groups):
        ys, final = online(xs.expand(rows, -1, -1))
        grads = torch.autograd.grad(ys.square().sum() + final.cell.sum(), list(cell.parameters()))
        draws.append(torch.cat([g.flatten() for g in grads]) / rows)
    ys, final = cell(xs, backend="reference")
    grads = torch.autograd.grad(ys.square().sum() + final.sum(), list(cell.parameters()))
    want = torch.cat([g.flatten() for g in grads])
    found = torch.stack(draws)
    return ((found.mean(0) - want) / (found.std(0) / groups**0.5 + 1e-12)).abs()


def test_uoro_is_right_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cell = es.RNN(2, 3).double()
    xs = torch.randn(1, 4, 2, dtype=F64)
    off = standard_errors(cell, xs)
    assert float(off.max()) < 5
    assert float(off.mean()) < 1.3  # 0.8 for a normal distribution

    right = RankOne.move

    def wrong(sign: float, scale: float) -> Any:
        def move(self: RankOne, *arguments: Any) -> RankOneState:
            found = right(self, *arguments)
            return RankOneState(sign * found.state, scale * found.parameters)

        return move

    for sign, scale in ((-1.0, 1.0), (1.0, 1.2)):
        monkeypatch.setattr(RankOne, "move", wrong(sign, scale))
        assert float(standard_errors(cell, xs).max()) > 10


def test_uoro_draws_a_sign_for_each_row_and_step() -> None:
    online = es.Online(es.RNN(2, 3), "uoro")
    xs = torch.randn(1, 4, 2).expand(2, -1, -1)
    torch.manual_seed(0)
    first = online(xs)[1].influence
    torch.manual_seed(0)
    again = online(xs)[1].influence
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.state[0], first.state[1])
    with pytest.raises(RuntimeError, match="signs of 'uoro' belong to a sequence"):
        online.step(xs[:, 0], online.initial_state(2, xs))
