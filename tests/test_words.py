"""What the tracer says is in the user's terms; on "meta" and under `torch.jit.trace` a cell runs like any module."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.native import toolchain
from tests.laws import refused


class Saying(es.Cell):
    """A step that cannot be followed, and parameters of several kinds."""

    def __init__(self, function: Callable[[es.Cell, Tensor, Tensor], Tensor]):
        super().__init__(3)
        self.function, self.linear = function, nn.Linear(3, 4)
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.function(self, x, state)
        return h, h


def says(cell: es.Cell, x: Tensor, h: Tensor) -> Tensor:
    raise ValueError(f"cannot use {tuple(x.shape)}, {x.numel()} numbers")


REFUSED: dict[str, tuple[Callable[[es.Cell, Tensor, Tensor], Tensor], str]] = {
    "a product": (lambda c, x, h: h @ c.linear.weight.t().t(), r"cannot be multiplied \(batch x 3 and 4 x 3\)"),
    "a sum": (lambda c, x, h: h + c.linear(x), r"tensor a \(3\) must match the size of tensor b \(4\)"),
    "rows and features": (lambda c, x, h: h.t() + x, r"tensor a \(batch\) must match the size of tensor b \(3\)"),
    "what the user says": (says, r"cannot use \(batch, 3\), 3·batch numbers"),
    "an output": (lambda c, x, h: c.linear(x), r"turns state leaf 'state' from \(batch, 3\) .* into \(batch, 4\)"),
    "a shape": (lambda c, x, h: h.flatten(), r"into \(3·batch\)"),
    "a complex buffer": (lambda c, x, h: (h * c.phase).abs(), r"^its step computes torch.complex64"),
    "rows beside rows": (lambda c, x, h: h + (h @ h.t()).sum(1, keepdim=True), r"batch, batch|against one another"),
}


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", REFUSED)
def test_the_tracers_own_numbers_and_names_are_not_said(name: str) -> None:
    function, told = REFUSED[name]
    reason = refused(fused, Saying(function), torch.zeros(2, 3, 3), None, None)
    assert reason is not None
    assert re.search(told, reason), reason
    assert not re.search(r"10(09|13|19|21)|value\d|state\d|\bx\d", reason.rpartition("(")[0]), reason


class Own(es.Cell):
    """A cell that no kernel of PyTorch's computes."""

    def __init__(self) -> None:
        super().__init__(3, 5)
        self.before, self.after = nn.Linear(3, 5), nn.Linear(5, 5)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.before(x) + self.after(state))
        return h, h


class OwnAffine(es.Affine):
    """The same for a parallel scan."""

    def __init__(self) -> None:
        super().__init__(3)
        self.rate = nn.Parameter(torch.zeros(3))

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(x + self.rate), x


CELLS: dict[str, Callable[[], es.Layer]] = {
    "own": Own,
    "affine": OwnAffine,
    "GRU": lambda: es.GRU(3, 5),
    "LSTM": lambda: es.LSTM(3, 5),
    "stack": lambda: es.Stack(es.GRU(3, 4), Own2()),
    "both ways": lambda: es.Bidirectional(es.LSTM(3, 5), es.LSTM(3, 5)),
}


class Own2(Own):
    """Of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.before = 4, nn.Linear(4, 5)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("how", ["plain", "ragged", "resets"])
def test_on_meta_there_are_shapes(name: str, how: str) -> None:
    plain = CELLS[name]()
    layer, xs = CELLS[name]().to("meta"), torch.zeros(2, 4, 3)
    arguments = {
        "plain": {},
        "ragged": {"lengths": torch.tensor([4, 2])},
        "resets": {"resets": torch.zeros(2, 4, dtype=torch.bool)},
    }[how]
    want, ends = plain(xs, **arguments)
    ys, final = layer(xs.to("meta"), **{k: v.to("meta") for k, v in arguments.items()})
    assert ys.is_meta
    assert ys.shape == want.shape
    assert [leaf.shape for _, leaf in es.state.leaves(final)] == [leaf.shape for _, leaf in es.state.leaves(ends)]
    assert str(es.explain(layer, xs.to("meta")))


@pytest.mark.parametrize("name", CELLS)
def test_torch_jit_traces_it(name: str) -> None:
    torch.manual_seed(0)
    layer = CELLS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, torch.randn(2, 4, 3))
    xs = torch.randn(2, 4, 3, requires_grad=True)
    ours, theirs = traced(xs)[0], layer(xs)[0]
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(ys.square().sum(), [xs, *layer.parameters()]) for ys in (ours, theirs)]
    torch.testing.assert_close(*gradients)
