"""A step that reads globals, closure variables or class attributes computes with their present values."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.native import toolchain
from everstep.state import map_state
from everstep.tracing.guards import Snapshot

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")

SOURCE = """
import torch
import everstep as es

SCALE, SCALES, TABLE, SHIFT = 0.5, [0.25, 0.5], {"power": 1.0}, torch.tensor(0.5)
LARGE = [0.5] * 1000


class Settings:
    rate = 0.5


def activation(v):
    return torch.tanh(v) * SCALE


def bound(factor):
    def gate(v):
        return v * factor

    def change(value):
        nonlocal factor
        factor = value

    return gate, change


gate, change = bound(0.5)


class Mine(es.Cell):
    weight = 0.5

    def inner(self, v):
        return v * self.weight

    @staticmethod
    def fixed(v):
        return v + 0.5

    @property
    def half(self):
        return 0.5

    def step(self, x, state):
        h = activation(self.inner(x) + gate(state)) * SCALES[1] + TABLE["power"] * SHIFT
        h = self.fixed(h) * self.half + Settings.rate
        return h, h


class Other(Mine):
    def step(self, x, state):
        return super().step(x, state)
"""


@pytest.fixture
def code(tmp_path: Path) -> Iterator[ModuleType]:
    """A module of a user."""
    path = tmp_path / "steps_of_a_user.py"
    path.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("steps_of_a_user", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["steps_of_a_user"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["steps_of_a_user"]


def reloaded(code: ModuleType) -> None:
    """What IPython's autoreload does: the function stays, its code is another."""
    code.Mine.inner.__code__ = (lambda self, v: v * self.weight * 3).__code__


CHANGES: dict[str, Callable[[ModuleType], object]] = {
    "a global number": lambda code: setattr(code, "SCALE", 0.75),
    "an element of a global list": lambda code: code.SCALES.__setitem__(1, 0.75),
    "an element of a global dictionary": lambda code: code.TABLE.__setitem__("power", 2.0),
    "a global tensor": lambda code: setattr(code, "SHIFT", torch.tensor(0.75)),
    "a global function": lambda code: setattr(code, "activation", torch.sigmoid),
    "what a global function reads": lambda code: code.change(0.75),
    "an attribute of another class": lambda code: setattr(code.Settings, "rate", 0.75),
    "an attribute of the class": lambda code: setattr(code.Mine, "weight", 0.75),
    "an attribute that a subclass gets": lambda code: setattr(code.Other, "weight", 0.75),
    "a method": lambda code: setattr(code.Mine, "inner", lambda self, v: v * 3),
    "the step that another calls": lambda code: setattr(
        code.Mine, "step", lambda self, x, state: (x + state, x + state)
    ),
    "a static method": lambda code: setattr(code.Mine, "fixed", staticmethod(lambda v: v + 3)),
    "a property": lambda code: setattr(code.Mine, "half", property(lambda self: 0.75)),
    "the code of a method": reloaded,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_change_is_noticed(code: ModuleType, change: Callable[[ModuleType], object]) -> None:
    cell, xs = code.Other(3, 3), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    first, _ = es.scan(cell, xs, backend="fused")
    torch.testing.assert_close(first, es.scan(cell, xs, backend="reference")[0])
    assert vars(cell)["_everstep_cache"].snapshot.still(cell)
    change(code)
    then, _ = es.scan(cell, xs, backend="fused")
    torch.testing.assert_close(then, es.scan(cell, xs, backend="reference")[0])
    assert not torch.equal(first, then)


UNREAD: dict[str, Callable[[ModuleType], object]] = {
    "another global": lambda code: setattr(code, "LARGE", None),
    "another attribute of the class": lambda code: setattr(code.Mine, "count", 3),
    "an attribute of an instance's namespace": lambda code: setattr(code, "rate", 3),
}


@pytest.mark.parametrize("change", UNREAD.values(), ids=list(UNREAD))
def test_what_the_step_does_not_read_may_change(code: ModuleType, change: Callable[[ModuleType], object]) -> None:
    snapshot = Snapshot(cell := code.Other(3, 3))
    change(code)
    assert snapshot.still(cell)


def test_cells_of_the_package_read_nothing_outside() -> None:
    from everstep.tracing.surroundings import Surroundings

    for cell in (es.LSTM(2, 3), es.Stack(es.GRU(2, 3), es.LSTM(3, 3))):
        assert Surroundings(cell.modules()).named() == []


RATE = 0.5


class ByTexts(es.Cell):
    """Looks everything up by its name."""

    rate, rates = 0.5, {"a": 0.5}

    def __init__(self) -> None:
        super().__init__(3, 3)

    def step(self, x: Any, state: Any) -> Any:
        own = getattr(self, "rate") * vars(type(self))["rates"]["a"]  # noqa: B009
        for name in ("more", "most"):
            own = own * getattr(self, name)()
        y = x * own * globals()["RATE"]
        return y, y

    def more(self) -> float:
        return 1.0

    def most(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(ByTexts, "rate", 1.0),
        lambda patch: patch.setattr(ByTexts, "rates", {"a": 1.0}),
        lambda patch: patch.setitem(globals(), "RATE", 1.0),
        lambda patch: patch.setattr(ByTexts, "most", lambda self: 2.0),
    ],
)
def test_a_name_by_its_text_is_watched(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, xs = ByTexts(), torch.ones(2, 3, 3)
    assert cell(xs)[0].unique().tolist() == [0.125]
    change(monkeypatch)
    assert cell(xs)[0].unique().tolist() == [0.25]


@pytest.mark.parametrize("time", [2, 9])  # of two steps, PyTorch's kernel runs where there is one
@pytest.mark.parametrize(
    ("kind", "name"),
    [(es.GRU, "step"), (es.GRU, "equation"), (es.RNN, "equation"), (es.MGU, "equation"), (es.LayerNormLSTM, "step")],
)
def test_a_replaced_method_of_the_package_is_noticed_by_a_cell_that_has_run(
    time: int, kind: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, xs = kind(3, 4), torch.randn(2, time, 3)
    before = cell(xs)[0]
    own = getattr(kind, name)

    def of_zeros(*given: Any, **options: Any) -> Any:
        return map_state(torch.zeros_like, own(*given, **options))

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, of_zeros if name == "step" else staticmethod(of_zeros))
        assert not cell(xs)[0].any()
    assert torch.equal(cell(xs)[0], before)


def test_an_equation_reads_the_variables_around_it() -> None:
    factor = 0.5

    @es.gated("f", state="h")
    def mine(x: Any, h: Any, s: Any) -> Tensor:
        return torch.ones_like(x.f + h.f) * factor

    cell, xs = mine(2, 3), torch.ones(2, 1, 2)
    assert es.scan(cell, xs)[0].unique().tolist() == [0.5]
    factor = 0.75
    assert es.scan(cell, xs)[0].unique().tolist() == [0.75]
