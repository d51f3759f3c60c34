"""Tensors that are no plain numbers in memory, and modes that look at operations: PyTorch's own loop runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.native import toolchain
from everstep.native.plain_memory import plain
from everstep.native.products import mm
from tests.laws import refused

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


class Wrap(Tensor):
    """Holds another tensor, and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, inner.stride(), dtype=inner.dtype)

    def __init__(self, inner: Tensor):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = tree_map_only(Wrap, lambda w: w.inner, (args, kwargs or {}))
        out = func(*inner[0], **inner[1])
        return Wrap(out) if func is torch.ops.aten.detach.default else out


class Tagged(Tensor):
    """A subclass with memory, which results keep."""


KINDS = {
    "wrapper": Wrap,
    "subclass": lambda t: t.as_subclass(Tagged),
    "negated": lambda t: torch._neg_view(-t),
}


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.detach().as_subclass(Tensor), want.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_states_that_are_no_plain_memory(kind: str) -> None:
    cell, xs, state = es.PeepholeLSTM(3, 4), torch.randn(2, 9, 3), (torch.randn(2, 4), torch.randn(2, 4))
    with torch.no_grad():
        want = es.scan(cell, xs, state, backend="reference")[0]
        odd = KINDS[kind](xs)
        assert not plain(odd)
        same(es.scan(cell, odd, state)[0], want)
        odd_state = tuple(map(KINDS[kind], state))
        same(es.scan(cell, xs, odd_state)[0], want)
        same(es.scan(cell, odd[:, :1].clone(), state)[0], want[:, :1])
    assert "no plain memory" in (refused(fused, cell, odd, None, None) or "")
    with pytest.raises(ValueError, match="its state: a tensor is no plain memory"):
        es.scan(cell, xs, odd_state, backend="fused")


def test_lengths_and_resets_that_are_no_plain_memory() -> None:
    cell, xs = es.PeepholeLSTM(3, 4), torch.randn(2, 9, 3)
    for how in ({"lengths": torch.tensor([9, 4])}, {"resets": torch.rand(2, 9) < 0.5}):
        odd = {name: value.as_subclass(Tagged) for name, value in how.items()}
        same(es.scan(cell, xs, **odd)[0], es.scan(cell, xs, **how, backend="reference")[0])
        with pytest.raises(ValueError, match="no plain memory"):
            es.scan(cell, xs, **odd, backend="fused")


def test_parameters_that_are_no_plain_memory() -> None:
    cell, xs = es.PeepholeLSTM(3, 4), torch.randn(2, 9, 3)
    want = es.scan(cell, xs, backend="fused")[0]
    weight = cell.weight_hh
    cell.weight_hh = nn.Parameter(Wrap(weight.detach()), requires_grad=False)
    with torch.no_grad():
        for _ in range(2):
            same(es.scan(cell, xs)[0], want)
    assert "no plain memory" in (refused(fused, cell, xs, None, None) or "")
    cell.weight_hh = weight
    assert refused(fused, cell, xs, None, None) is None


@pytest.mark.parametrize("kind", [es.LSTM, es.PeepholeLSTM, es.MinGRU])
def test_fake_tensors(kind: type[es.Cell]) -> None:
    cell, xs = kind(3, 4), torch.randn(2, 9, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert cell(mode.from_tensor(xs))[0].shape == (2, 9, 4)
        assert cell(xs)[0].shape == (2, 9, 4)
    assert refused(fused, cell, xs, None, None) is None


def test_a_mode_sees_the_operations() -> None:
    cell, xs = es.PeepholeLSTM(3, 4), torch.randn(2, 9, 3)
    counts = []
    for backend in ("auto", "reference"):
        with FlopCounterMode(display=False) as counter:
            es.scan(cell, xs, backend=backend)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_accelerated_modules(kind: str) -> None:
    x, w = torch.randn(5, 3), torch.randn(3, 4)
    same(mm(KINDS[kind](x), w), x @ w)
    model = es.accelerate(nn.LSTM(3, 4))
    xs, state = torch.randn(9, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    with torch.no_grad():
        want = model(xs, state)[0]
        same(model(KINDS[kind](xs), state)[0], want)
        same(model(xs, tuple(map(KINDS[kind], state)))[0], want)


def test_reservoirs() -> None:
    cell, xs = es.Reservoir(3, 40), torch.randn(2, 9, 3)
    for make in KINDS.values():
        with torch.no_grad():
            same(cell(make(xs))[0], cell(xs)[0])
