"""`explain` names what a call now takes: in training and eval mode, with gradients and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.backends.protocol import Refusal
from everstep.explanation import Explanation
from everstep.wirings.orthogonal import Orthogonal
from tests.laws import LAYERS, PLAIN, WIRINGS, D, H


class Noisy(es.Cell):
    """Dropout in the step, which has random numbers in training."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.linear, self.dropout = nn.Linear(D + H, H), nn.Dropout(0.5)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.dropout(self.linear(torch.cat([x, state], -1))))
        return h, h


class Normed(es.Cell):
    """A norm over the batch in the step, which sets rows against one another in training."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.linear, self.norm = nn.Linear(D + H, H), nn.BatchNorm1d(H)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.norm(self.linear(torch.cat([x, state], -1))))
        return h, h


OTHERS: dict[str, Any] = {
    "Noisy": Noisy,
    "Normed": Normed,
    "Stack of noise": lambda: es.Stack(Noisy(), es.LSTM(H, 2)),
    "Online": lambda: es.Online(es.RNN(D, H)),
    "uoro": lambda: es.Online(es.RNN(D, H), "uoro"),
    "Orthogonal": lambda: Orthogonal(es.RNN(D, H)),
    "TimeAveraged": lambda: es.TimeAveraged(es.GRU(D, H)),
    "Reservoir noise": lambda: es.Reservoir(D, H, noise=0.1),
}


def ways(found: Explanation) -> Iterator[str]:
    if found.backend is not None:
        yield found.backend
    for part in found.parts:
        yield from ways(part)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that run, as they do."""
    names: list[str] = []
    for name, backend in BACKENDS.items():

        def prepare(*given: Any, name: str = name, real: Any = backend.prepare, **more: Any) -> Any:
            found = real(*given, **more)
            return found if isinstance(found, Refusal) else lambda state: names.append(name) or found(state)

        monkeypatch.setattr(backend, "prepare", prepare)
    return names


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*PLAIN, *WIRINGS, *OTHERS])
def test_what_is_told_is_what_runs(name: str, training: bool, learning: bool, ran: list[str]) -> None:
    layer = {**LAYERS, **OTHERS}[name]().train(training)
    xs = torch.randn(2, 5, layer.input_size)
    with torch.set_grad_enabled(learning):
        told = es.explain(layer, xs)
        assert not ran
        layer(xs)
    named = set(ways(told))
    if "its own" in named:  # a loop of PyTorch's, or of the reservoir's
        assert set(ran) - {"reference"} <= named
    else:
        assert named == set(ran)


def test_dropout_and_norms_in_a_step_are_told_where_they_stand() -> None:
    for kind, reason in ((Noisy, "random numbers"), (Normed, "in place")):
        cell, xs = kind(), torch.randn(2, 5, D)
        told = es.explain(cell, xs)
        assert told.backend == "reference"
        assert reason in told.passed["fused"]
        assert cell.training
        assert es.explain(cell.eval(), xs).backend == "fused"
    assert "normalises over the rows" in str(es.explain(es.BatchNormLSTM(D, H, steps=5), torch.randn(2, 5, D)))
    assert "differentiates every step" in str(es.explain(es.Online(es.RNN(D, H)), torch.randn(2, 5, D)))
