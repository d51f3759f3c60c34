"""A cell that has changed is traced anew; one that has not is known without a fingerprint."""

from __future__ import annotations

import argparse
import copy
import gc
import io
import logging
import math
import weakref
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.fused.runtime.cell_cache import KEPT
from everstep.native import toolchain
from everstep.tracing.guards import Snapshot, fingerprint
from everstep.tracing.side_effects import HOME

CACHE = import_module("everstep.backends.fused.runtime.cell_cache")  # whose name in `fused` is its function's
pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")


class Weighted(es.Cell):
    """Attributes of every kind that a step may read."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.inner = nn.ModuleList([nn.Linear(3, 3)])
        self.scale, self.scales, self.pair = 0.5, [0.25, 0.5], (0.5, (1.0, None))
        self.options: dict[str, Any] = {"power": torch.tanh, "shift": [1.0]}
        self.register_buffer("offset", torch.ones(3))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        h = self.options["power"](self.inner[0](x) + state) * self.scale + self.scales[1] * self.offset
        h = h + self.options["shift"][0] * self.pair[0]
        return (h if self.training else 2 * h), h


CHANGES: dict[str, Callable[[Any], object]] = {
    "a number": lambda cell: setattr(cell, "scale", 0.75),
    "a tuple": lambda cell: setattr(cell, "pair", (0.75, (1.0, None))),
    "an element of a list": lambda cell: cell.scales.__setitem__(1, 0.75),
    "an element of a dictionary": lambda cell: cell.options.__setitem__("power", torch.sigmoid),
    "an element of a list in a dictionary": lambda cell: cell.options["shift"].__setitem__(0, 2.0),
    "the mode": lambda cell: cell.eval(),
    "a parameter": lambda cell: setattr(cell.inner[0], "weight", nn.Parameter(torch.eye(3))),
    "a parameter in its module's dictionary": lambda cell: cell.inner[0]._parameters.update(
        bias=nn.Parameter(torch.ones(3))
    ),
    "a buffer": lambda cell: setattr(cell, "offset", torch.zeros(3)),
    "a module": lambda cell: cell.inner.__setitem__(0, nn.Linear(3, 3, bias=False)),
    "a hook": lambda cell: cell.inner[0].register_forward_hook(lambda module, given, found: 2 * found),
    "a hook before": lambda cell: cell.inner[0].register_forward_pre_hook(lambda module, given: (2 * given[0],)),
    "the class of a module": lambda cell: setattr(cell.inner[0], "__class__", type("Other", (nn.Linear,), {})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: str) -> None:
    cell, xs = Weighted(), torch.randn(2, 4, 3)
    es.scan(cell, xs, backend="fused")
    snapshot = Snapshot(cell)
    assert snapshot.still(cell)
    CHANGES[change](cell)
    assert not snapshot.still(cell)
    found, _ = es.scan(cell, xs, backend="fused")
    torch.testing.assert_close(found, es.scan(cell, xs, backend="reference")[0])


@dataclass
class Config:
    """Options that can change, as they are often kept."""

    scale: float = 0.5
    inner: Any = field(default_factory=lambda: argparse.Namespace(shift=1.0, shifts=[1.0]))


@dataclass(slots=True)
class Slots:
    """The same without a dictionary."""

    scale: float = 0.5


@dataclass(frozen=True)
class Frozen:
    """What has a hash that it cannot compute."""

    scales: dict[str, float]


class Reading(es.Cell):
    """A step that reads one number of what `options` holds."""

    def __init__(self, options: Any, read: Callable[[Any], float]):
        super().__init__(3, 3)
        self.weight, self.options, self.read = nn.Parameter(torch.randn(3, 3)), options, read

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        h = torch.tanh(x @ self.weight + state) * self.read(self.options)
        return h, h


def agrees(cell: es.Cell, xs: Tensor) -> None:
    """That the engine computes what PyTorch does."""
    found, _ = es.scan(cell, xs, backend="fused")
    torch.testing.assert_close(found, es.scan(cell, xs, backend="reference")[0])


OPTIONS: dict[str, tuple[Any, Callable[[Any], float], Callable[[Any], object]]] = {
    "a dataclass": (Config(), lambda o: o.scale, lambda o: setattr(o, "scale", 2.0)),
    "one with slots": (Slots(), lambda o: o.scale, lambda o: setattr(o, "scale", 2.0)),
    "one inside of another": (Config(), lambda o: o.inner.shift, lambda o: setattr(o.inner, "shift", 2.0)),
    "a list inside of that": (Config(), lambda o: o.inner.shifts[0], lambda o: o.inner.shifts.__setitem__(0, 2.0)),
    "a namespace": (argparse.Namespace(scale=0.5), lambda o: o.scale, lambda o: setattr(o, "scale", 2.0)),
    "a frozen one's dictionary": (Frozen({"a": 0.5}), lambda o: o.scales["a"], lambda o: o.scales.update(a=2.0)),
    "bytes": (bytearray([1]), lambda o: float(o[0]), lambda o: o.__setitem__(0, 2)),
    "an array of Python's": (array("d", [0.5]), lambda o: o[0], lambda o: o.__setitem__(0, 2.0)),
    "an array": (np.array([0.5]), lambda o: float(o[0]), lambda o: o.fill(2.0)),
    "a set": ({1}, lambda o: float(len(o)), lambda o: o.add(2)),
    "a deque": (deque([0.5]), lambda o: o[0], lambda o: o.appendleft(2.0)),
    "a method's owner": (Config().__eq__, lambda o: o.__self__.scale, lambda o: setattr(o.__self__, "scale", 2.0)),
    "the sign of zero": ([0.0], lambda o: math.copysign(1.0, o[0]), lambda o: o.__setitem__(0, -0.0)),
    "the kind of a number": ([1], lambda o: 1.0 if o[0] is True else 2.0, lambda o: o.__setitem__(0, True)),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_changes_inside_of_objects_are_noticed(kind: str) -> None:
    options, read, change = OPTIONS[kind]
    cell, xs = Reading(options, read), torch.randn(2, 4, 3)
    agrees(cell, xs)
    change(options)
    agrees(cell, xs)


class Three(es.Cell):
    """Weights that can be tied, or absent."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.a, self.b, self.c = (nn.Parameter(torch.randn(3, 3)) for _ in range(3))
        self.d, self.e, self.f = (nn.Linear(3, 3) for _ in range(3))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        h = torch.tanh(x @ self.a + state @ self.b + torch.sigmoid(x) @ self.c)
        h = torch.tanh(h if self.d is None else self.d(h)) - (h if self.e is None else self.e(h))
        return self.f(h), h


def test_other_ties_are_another_program() -> None:
    cell, xs = Three(), torch.randn(2, 4, 3)
    b, e = cell.b, cell.e
    cell.b, cell.e = cell.a, cell.d
    agrees(cell, xs)
    cell.b = cell.c = b  # as many tensors, of the same shapes
    agrees(cell, xs)
    cell.e = cell.f = e
    agrees(cell, xs)


def test_a_name_that_another_has_left_is_another_program() -> None:
    cell, xs = Three(), torch.randn(2, 4, 3)
    cell.d, e = None, cell.e  # type: ignore[assignment]
    agrees(cell, xs)
    cell.d, cell.e = e, None  # type: ignore[assignment]
    agrees(cell, xs)


def test_hooks_come_and_go() -> None:
    cell, xs = Weighted(), torch.randn(2, 4, 3)
    agrees(cell, xs)
    for factor in (2, 3):
        hook = cell.inner[0].register_forward_hook(lambda module, given, found, factor=factor: factor * found)
        agrees(cell, xs)
        hook.remove()
    before = fingerprint(cell, xs)
    cell.inner[0].register_full_backward_hook(lambda *_: None)
    assert fingerprint(cell, xs) != before


def test_objects_are_not_taken_for_others_that_had_their_place() -> None:
    cell, xs = Reading(None, lambda o: o.scale), torch.randn(2, 4, 3)
    for n in range(6):
        cell.options = argparse.Namespace(scale=float(n))
        agrees(cell, xs)


def test_an_object_that_refers_to_itself_and_to_much_is_looked_at_in_part() -> None:
    options = argparse.Namespace(scale=0.5, words=dict.fromkeys(range(1000), 0.5))
    options.again = options
    cell, xs = Reading(options, lambda o: o.scale), torch.randn(2, 4, 3)
    agrees(cell, xs)
    assert len(str(fingerprint(cell, xs))) < 10_000


def test_numbers_of_another_dtype_are_noticed() -> None:
    cell, xs = Weighted(), torch.randn(2, 4, 3)
    es.scan(cell, xs, backend="fused")
    snapshot = Snapshot(cell)
    cell.double()  # the same parameters, with other data
    assert not snapshot.still(cell)
    ys, _ = es.scan(cell, xs.double(), backend="fused")
    assert ys.dtype == torch.float64


def test_what_cannot_be_watched_is_never_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = Weighted(), torch.randn(2, 4, 3)
    cell.names = {"a", "b"}  # type: ignore[assignment]
    assert not Snapshot(cell).still(cell)
    assert es.scan(cell, xs, backend="fused")[0].shape == (2, 4, 3)


def test_an_unchanged_cell_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = es.Stack(es.LSTM(3, 3), Weighted()), torch.randn(2, 4, 3)
    es.scan(cell, xs, backend="fused")
    monkeypatch.setattr(fused, "fingerprint", lambda *_: pytest.fail("it was looked at again"))
    es.scan(cell, xs, backend="fused")
    es.scan(cell, torch.randn(5, 2, 3), backend="fused")
    with pytest.raises(pytest.fail.Exception):
        es.scan(copy.deepcopy(cell), xs, backend="fused")


class Owned(nn.Module):
    """A module that refers to what it is in."""

    def __init__(self, owner: nn.Module):
        super().__init__()
        self.owner = (owner,)

    def forward(self, x: Tensor) -> Tensor:
        """The hyperbolic tangent."""
        return torch.tanh(x)


def test_a_known_cell_goes_at_once() -> None:
    cell = Weighted()
    es.scan(cell, torch.randn(2, 4, 3), backend="fused")
    es.scan(cell, torch.randn(2, 4, 3), backend="fused")
    known = weakref.ref(cell.offset)
    gc.collect()
    gc.disable()
    try:
        del cell
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["a method", "a module", "a function"])
def test_a_known_cell_that_refers_to_itself_is_not_kept(how: str) -> None:
    cell = Weighted()
    what = {"a method": cell.step, "a module": Owned(cell), "a function": lambda x, cell=cell: torch.tanh(x)}[how]
    if how == "a method":
        cell.again = what  # type: ignore[assignment]
    else:
        cell.options["power"] = cell.power = what  # type: ignore[assignment]
    del what
    es.scan(cell, torch.randn(2, 4, 3), backend="fused")
    es.scan(cell, torch.randn(2, 4, 3), backend="fused")
    known = weakref.ref(cell)
    del cell
    gc.collect()
    assert known() is None


def test_copies_know_nothing_of_what_they_are_copies_of() -> None:
    cell, xs = Weighted(), torch.randn(2, 4, 3)
    es.scan(cell, xs, backend="fused")
    file = io.BytesIO()
    torch.save(cell, file)
    file.seek(0)
    copies = [copy.copy(cell), copy.deepcopy(cell), torch.load(file, weights_only=False)]
    assert [vars(other)[HOME] is None for other in copies] == [False, True, True]  # a copy shares what it can
    for other in copies:
        other.scale = 0.75
        agrees(other, xs)
        agrees(cell, xs)
        assert vars(other)[HOME] is not vars(cell)[HOME]
    assert HOME not in repr(cell)
    assert not any(HOME in name for name in cell.state_dict())
    del vars(cell)[HOME]  # as in an old pickle
    agrees(cell, xs)


def test_what_keeps_changing_is_not_compiled_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(CACHE, "clock", lambda: now)
    monkeypatch.setattr(fused, "clock", lambda: 0.0)  # nothing takes any time
    cell, xs, traced, trace = Weighted(), torch.randn(2, 4, 3), [], fused.trace
    monkeypatch.setattr(fused, "trace", lambda *args, **kwargs: traced.append(1) or trace(*args, **kwargs))
    with caplog.at_level(logging.WARNING, logger="everstep"):
        for n in range(KEPT):
            cell.inner[0].calls = n
            es.scan(cell, xs, backend="fused")
        es.scan(cell.eval(), xs, backend="fused")
        assert not caplog.records  # another mode is nothing to tell of
        for n in range(KEPT, KEPT + 3):
            cell.inner[0].calls = n
            torch.testing.assert_close(cell(xs), es.scan(cell, xs, backend="reference"))
    assert len(traced) == KEPT + 1
    assert len(caplog.records) == 1
    assert "Weighted runs step by step, not compiled: it would be traced" in caplog.text
    assert "since Linear.calls keeps changing" in caplog.text
    es.scan(cell, xs, backend="fused")  # by name
    assert len(traced) == KEPT + 2
    now, cell.inner[0].calls = 1.0, -1
    assert es.explain(cell, xs).backend == "fused"
    assert len(traced) == KEPT + 3
    assert len(vars(cell)[HOME]._programs) == KEPT


def test_what_takes_long_to_compile_is_not_compiled_for_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cell, xs = 0.0, Weighted().eval(), torch.randn(2, 4, 3)
    monkeypatch.setattr(CACHE, "clock", lambda: now)
    monkeypatch.setattr(fused, "clock", lambda: now)
    compile_ = fused._compile

    def slowly(*given: Any) -> Any:
        nonlocal now
        now += 5
        return compile_(*given)

    monkeypatch.setattr(fused, "_compile", slowly)
    found = []
    for n in range(4):
        cell.inner[0].calls = n
        found.append(es.explain(cell, xs).backend)
        torch.testing.assert_close(cell(xs), es.scan(cell, xs, backend="reference"))
    now += 101
    found.append(es.explain(cell, xs).backend)
    assert found == ["fused", "fused", "reference", "reference", "fused"]


def test_a_tensor_in_an_attribute_that_is_another_each_time(caplog: pytest.LogCaptureFixture) -> None:
    cell, xs = Weighted(), torch.randn(2, 4, 3)
    for n in range(KEPT + 3):
        cell.options["shift"] = torch.full((3,), float(n))
        torch.testing.assert_close(cell(xs), es.scan(cell, xs, backend="reference"))
    assert "Weighted.options keeps changing" in caplog.text


class Remembering(es.Cell):
    """A step that reads a tensor of its module's, of which there is one for each row, or one for all."""

    def __init__(self) -> None:
        super().__init__(3)
        self.memory = torch.zeros(1, 3)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(x + state + self.memory.sum(0) if len(self.memory) == 5 else x + state + self.memory)
        return h, h


@pytest.mark.parametrize("rows", [2, 5])
def test_what_stood_in_an_attribute_is_let_go(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CACHE, "_LARGE", 0)
    cell, xs, held = Remembering(), torch.randn(2, 4, 3), []
    for _ in range(3):
        cell.memory = torch.randn(rows, 3)
        held.append(weakref.ref(cell.memory))
        torch.testing.assert_close(cell(xs), es.scan(cell, xs, backend="reference"))
    gc.collect()
    assert [ref() is not None for ref in held] == [False, False, True]


@pytest.mark.parametrize("backend", ["fused", "vendor", "auto"])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_weight_that_stands_in_for_a_call_is_not_kept(backend: str, gradients: bool) -> None:
    cell, xs = es.LSTM(3, 3), torch.randn(2, 9, 3)
    cell(xs, backend=backend)
    with torch.set_grad_enabled(gradients):
        weight = cell.weight_hh * 2  # as a WeightDrop has it
        known = weakref.ref(weight)
        torch.func.functional_call(cell, {"weight_hh": weight}, (xs,), {"backend": backend})
    del weight
    assert known() is None
    agrees(cell, xs)
