"""A cell that has changed is traced anew; one that has not is known without a fingerprint."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.scanning import fused
from everstep.scanning.fused import toolchain
from everstep.scanning.fused.fingerprint import Snapshot

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


def test_a_known_cell_is_not_kept() -> None:
    cell = Weighted()
    es.scan(cell, torch.randn(2, 4, 3), backend="fused")
    known = weakref.ref(cell)
    del cell
    gc.collect()
    assert known() is None
