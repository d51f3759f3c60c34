"""Cells, states and streams can be copied and pickled, those of a user as those of the package."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as es
from everstep import cells
from everstep.equation import Gated
from everstep.state import leaves
from tests.laws import D, H, ThreeStates

GATED = [kind for kind in vars(cells).values() if inspect.isclass(kind) and issubclass(kind, Gated)]

SCRIPT = """
import pickle, copy, sys, torch, everstep as es

@es.gated("u r", state="h m")
def Own(x, h, s):
    m = s.m + torch.tanh(x.u) * torch.sigmoid(h.r)
    return torch.tanh(m), m

class Outer:
    @es.gated("u", state="h k")
    def Inner(x, h, s):
        return torch.tanh(x.u + s.k), 0.5 * s.k

def check():
    for kind in (Own, Outer.Inner):
        cell, xs = kind(3, 4), torch.randn(2, 5, 3)
        ys, state = cell(xs)
        cell2, state2, stream = pickle.loads(pickle.dumps((cell, state, es.Stream(cell, 2, state))))
        assert type(state2) is type(state) and torch.equal(state2[1], state[1])
        assert torch.equal(cell2(xs, state2)[0], cell(xs, state)[0])
        torch.testing.assert_close(stream(xs[:, 0]), cell(xs, state)[0][:, 0])
    assert type(Own(3, 4)(xs)[1]).__name__ == "OwnState"

if __name__ == "__main__":
    check()
"""


@pytest.mark.parametrize("kind", [*GATED, ThreeStates], ids=lambda kind: kind.__name__)
def test_states_of_gated_cells(kind: Any) -> None:
    if len(kind.state_names) == 1:
        return
    state = kind.state_type(*torch.randn(len(kind.state_names), 2, H))
    for other in (copy.deepcopy(state), *(pickle.loads(pickle.dumps(state, p)) for p in (2, 4, 5))):
        assert type(other) is kind.state_type
        assert all(torch.equal(a, b) for a, b in zip(other, state, strict=True))
    assert type(state).__name__ == f"{kind.__name__}State"


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("compiled", [True, False])
def test_streams(through: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("everstep.stream._compile", lambda *_: "no")
    torch.manual_seed(0)
    cell, xs = es.Stack(es.LSTM(D, H), es.GRU(H, H)).eval(), torch.randn(2, 6, D)
    ys, _ = cell(xs)
    stream = es.Stream(cell, 2)
    first = [stream(x) for x in xs[:, :3].unbind(1)]
    other = through(stream)
    assert other.compiled == compiled
    for one in (stream, other):  # each goes on by itself from there
        rest = [one(x) for x in xs[:, 3:].unbind(1)]
        torch.testing.assert_close(torch.stack(first + rest, 1), ys)
    if through is not copy.copy:
        assert other.cell is not cell
        with torch.no_grad():
            for parameter in other.cell.parameters():
                parameter.zero_()
        stream.reset()
        torch.testing.assert_close(stream(xs[:, 0]), ys[:, 0])


def test_cells_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a module that is imported, and in the script that runs."""
    (tmp_path / "cells_of_users.py").write_text(SCRIPT, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    imported = importlib.import_module("cells_of_users")
    try:
        imported.check()
        runpy.run_module("cells_of_users", run_name="__main__", alter_sys=True)
    finally:
        del sys.modules["cells_of_users"]
    runpy.run_path(str(tmp_path / "cells_of_users.py"), run_name="__main__")
    assert [name for name, _ in leaves(ThreeStates(D, H).initial_state(1, torch.zeros(1)))] == ["h", "m", "k"]
