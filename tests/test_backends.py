"""What a backend prepares is a call by itself: it may run later, more than once, and with others in between."""

from __future__ import annotations

import pytest
import torch

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.backends.protocol import Refusal

D, H, B, T = 3, 4, 2, 7
TAKES = {"fused": es.GRU, "vendor": es.GRU, "parallel": es.MinGRU, "reference": es.GRU}


@pytest.mark.parametrize("name", BACKENDS)
def test_prepared_calls_are_independent(name: str) -> None:
    torch.manual_seed(0)
    cells = [TAKES[name](D, H, dtype=torch.float64) for _ in range(2)]
    inputs = [torch.randn(B, T, D, dtype=torch.float64) for _ in range(2)]
    lengths = [None, torch.tensor([T, 3])]
    states = [torch.randn(B, H, dtype=torch.float64) for _ in range(2)]
    calls = list(zip(cells, inputs, lengths, strict=True))
    runs = [BACKENDS[name].prepare(*call, None) for call in calls]
    for k in (1, 0, 1):
        run, (cell, xs, length) = runs[k], calls[k]
        if isinstance(run, Refusal):
            assert name == "fused"
            pytest.skip(run)
        for state in states:
            torch.testing.assert_close(run(state), cell(xs, state, lengths=length, backend="reference"))


def test_a_refusal_says_why() -> None:
    cell, xs = es.LSTM(D, H), torch.randn(B, T, D)
    assert "not declared affine" in str(BACKENDS["parallel"].prepare(cell, xs, None, None))
    with pytest.raises(ValueError, match="backend 'parallel' cannot run LSTM: its step is not declared affine"):
        cell(xs, backend="parallel")
