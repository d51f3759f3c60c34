"""Equal cells share a program; cells that may compute something else do not."""

from __future__ import annotations

import pytest
import torch

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.fused.runtime import shared_programs
from everstep.native import toolchain

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="there is no compiler")


@pytest.fixture(autouse=True)
def _nothing_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_programs, "_shared", type(shared_programs._shared)())


def program(cell: es.Cell, dtype: torch.dtype = torch.float32) -> object:
    return fused._program(cell.to(dtype), torch.zeros(2, 3, 3, dtype=dtype))


def scaled(x, h, s):
    return torch.tanh(x.a + SCALE * h.a)


SCALE = 0.5


def test_cells_of_equal_class_sizes_and_options_share() -> None:
    assert program(es.GRU(3, 4)) is program(es.GRU(3, 4))
    assert program(es.LayerNormLSTM(3, 4)) is program(es.LayerNormLSTM(3, 4))
    others = [es.GRU(3, 5), es.LSTM(3, 4), es.GRU(3, 4, activation=torch.sin), es.GRU(3, 4).eval()]
    assert len({id(program(cell)) for cell in [es.GRU(3, 4), *others]}) == 5
    assert program(es.GRU(3, 4), torch.float64) is not program(es.GRU(3, 4))


def test_sharing_cells_compute_with_their_own_weights() -> None:
    one, other = es.GRU(3, 4), es.GRU(3, 4)
    xs = torch.randn(2, 3, 3)
    for cell in (one, other, one):
        torch.testing.assert_close(cell(xs)[0], es.scan(cell, xs, backend="reference")[0])
    assert program(one) is program(other)


def test_a_replaced_method_is_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    before = program(es.LayerNormLSTM(3, 4))
    step = es.LayerNormLSTM.step
    monkeypatch.setattr(es.LayerNormLSTM, "step", lambda self, x, state: step(self, 2 * x, state))
    assert program(es.LayerNormLSTM(3, 4)) is not before


def test_users_classes_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = es.gated("a", state="h")(scaled)
    xs = torch.randn(2, 3, 3)
    for value in (0.5, -0.25):
        monkeypatch.setitem(globals(), "SCALE", value)
        made = cell(3, 4)
        torch.testing.assert_close(made(xs)[0], es.scan(made, xs, backend="reference")[0])


def test_hooks_and_attributes_of_other_kinds_do_not_share() -> None:
    one, other = es.LayerNormLSTM(3, 4), es.LayerNormLSTM(3, 4)
    for cell in (one, other):
        next(m for m in cell.modules() if isinstance(m, torch.nn.LayerNorm)).register_forward_hook(
            lambda module, inputs, y: 2 * y
        )
    assert program(one) is not program(other)
    made = [es.GRU(3, 4), es.GRU(3, 4)]
    for cell in made:
        cell.note = object()  # type: ignore[assignment]
    assert program(made[0]) is not program(made[1])


def test_other_flags_and_no_compiler_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = program(es.GRU(3, 4))
    monkeypatch.setenv("EVERSTEP_CXXFLAGS", "-O0")
    assert program(es.GRU(3, 4)) is not before
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    monkeypatch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
    assert not isinstance(program(es.GRU(3, 4)), type(before))


def test_the_one_that_was_not_used_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_programs, "_KEPT", 2)
    first, second = program(es.GRU(3, 4)), program(es.GRU(3, 5))
    assert program(es.GRU(3, 4)) is first
    program(es.GRU(3, 6))
    assert program(es.GRU(3, 4)) is first
    assert program(es.GRU(3, 5)) is not second
