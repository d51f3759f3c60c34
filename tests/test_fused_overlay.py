"""Arrays of a training step that share memory: nothing is overwritten too early, and a second use is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_fused import make
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

import everstep as es
from everstep.backends.dispatch import dispatch
from everstep.backends.fused import adjoint
from everstep.backends.fused import backend as fused
from everstep.native import memory_pool, toolchain

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


def program(cell: es.Cell) -> fused.Program:
    found = fused._program(cell, torch.zeros(2, 3, cell.input_size, dtype=next(cell.parameters()).dtype))
    assert isinstance(found, fused.Program), found
    return found


@pytest.mark.parametrize(("kind", "kept", "over"), [(es.LSTM, 1, True), (es.GRU, 2, True), (es.RNN, 0, False)])
def test_what_a_training_step_keeps_besides_its_input(kind: type[es.Cell], kept: int, over: bool) -> None:
    made = program(make(kind, 3, 16))
    assert sum(made.kept_sizes.values()) == kept * 16
    assert bool(made.over) == over


class Logistic(es.Cell):
    """h ← r h (1 - h), forty times: what is read twice at every turn has 2⁴⁰ ways back."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.rate = nn.Parameter(torch.tensor(3.7))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.sigmoid(x + state)
        for _ in range(40):
            h = self.rate * h * (1 - h)
        return h, h


def test_what_a_value_costs_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    spread = adjoint._spread

    def noted(view: Any) -> bool:
        asked.append(view)
        assert len(asked) < 1000
        return spread(view)

    monkeypatch.setattr(adjoint, "_spread", noted)
    program(Logistic().double())
    assert asked


def gradients(cell: es.Cell, xs: Tensor, ys: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(ys.square().sum(), [xs, *cell.parameters()], **options)


@pytest.mark.parametrize("kind", [es.LSTM, es.GRU])
def test_backward_again_and_again(kind: type[es.Cell]) -> None:
    cell = make(kind, 3, 16)
    xs = torch.randn(4, 9, 3, dtype=torch.float64, requires_grad=True)
    ys, _ = es.scan(cell, xs, backend="fused")
    first = [g.clone() for g in gradients(cell, xs, ys, retain_graph=True)]
    again = gradients(cell, xs, ys, retain_graph=True)
    through = gradients(cell, xs, ys, create_graph=True)
    last = gradients(cell, xs, ys)
    for one, *others in zip(first, again, last, strict=True):
        assert all(torch.equal(one, other) for other in others)
    for one, other in zip(first, through, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("how", ["checkpoint", "saved elsewhere"])
def test_hooks_on_what_is_saved(how: str) -> None:
    cell = make(es.LSTM, 3, 16)
    xs = torch.randn(4, 9, 3, dtype=torch.float64, requires_grad=True)
    want = gradients(cell, xs, es.scan(cell, xs, backend="fused")[0])

    def outputs(xs: Tensor) -> Tensor:
        return es.scan(cell, xs, backend="fused")[0]

    if how == "checkpoint":
        ys = checkpoint(outputs, xs, use_reentrant=False)
    else:
        with save_on_cpu():
            ys = outputs(xs)
    for got, wanted in zip(gradients(cell, xs, ys), want, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.instructions
def test_backward_again_under_autocast() -> None:
    cell = make(es.GRU, 16, 16, dtype=torch.float32)
    xs = torch.randn(4, 9, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ys, _ = es.scan(cell, xs, backend="fused")
    first = [g.clone() for g in gradients(cell, xs, ys, retain_graph=True)]
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(cell, xs, ys), strict=True))


def test_memory_used_again_is_of_the_same_device() -> None:
    like = torch.empty(1)
    kept = memory_pool.empty(like, 1 << 18)
    address = kept.data_ptr()
    del kept
    assert memory_pool.empty(like.to("meta"), 1 << 18).device.type == "meta"
    assert memory_pool.empty(like, 1 << 18).data_ptr() == address


class Twice(es.Cell):
    """Adds two inputs at different places, so that one array holds the gradients of both."""

    def step(self, x: tuple[Tensor, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x
        h = torch.tanh((a + 0.5 * state) + b)
        return h, h


@pytest.mark.parametrize("ragged", [False, True])
def test_inputs_of_one_gradient_have_each_their_own(ragged: bool) -> None:
    cell, found = Twice(5, 5), []
    lengths = torch.tensor([7, 0, 3]) if ragged else None
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        a, b = (torch.randn(3, 7, 5, requires_grad=True) for _ in range(2))
        ys, _ = dispatch(cell, (a, b), torch.zeros(3, 5), lengths, None, backend)
        found.append(torch.autograd.grad(ys.square().sum(), [a, b]))
    assert found[0][0].data_ptr() != found[0][1].data_ptr()
    torch.testing.assert_close(*found)


class Deep(es.Cell):
    """An LSTM behind a layer, which PyTorch computes before the loop."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.w, self.v, self.u = nn.Linear(8, 8), nn.Linear(8, 64), nn.Linear(16, 64, bias=False)

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(batch, 16), like.new_zeros(batch, 16)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = (self.v(torch.tanh(self.w(x))) + self.u(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


@pytest.mark.instructions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_second_backward_computes_in_the_precision_of_the_call(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cell, xs = Deep(), torch.randn(3, 7, 8, requires_grad=True)
    assert program(cell).over  # so that what the call has kept is overwritten
    with torch.autocast("cpu", dtype):
        ys, _ = es.scan(cell, xs, backend="fused")
    wanted = [xs, *cell.parameters()]
    first, again = (torch.autograd.grad(ys.sum(), wanted, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class Late(es.Cell):
    """A gate that is known before the input is read, and is as large as that."""

    def __init__(self) -> None:
        super().__init__(3, 16)
        self.w, self.v, self.u = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(self.v(h))
        h = torch.tanh(self.u(gate * h) + self.w(x))
        return h, h


class Turned(es.Cell):
    """A matrix whose input is read by columns in the loop that writes what backward needs by rows."""

    def __init__(self) -> None:
        super().__init__(3, 16)
        self.w, self.v = nn.Linear(3, 16, bias=False), nn.Linear(4, 4)

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, 4, 4)

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        m = torch.sigmoid(self.w(x).view(-1, 4, 4).mT + self.v(h))
        h = m * torch.cos(h)
        return h.flatten(1), h


class Twofold(es.Cell):
    """Two gates for whose values the input has room, one beside the other."""

    def __init__(self) -> None:
        super().__init__(3, 16)
        self.w, self.u = nn.Linear(3, 32), nn.Linear(16, 32, bias=False)

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (self.w(x) + self.u(h)).chunk(2, -1)
        a, b = torch.sigmoid(a), torch.sigmoid(b)
        h = a * torch.cos(h) + b * torch.sin(h)
        return h, h


class Needed(es.Cell):
    """The input itself is what backward needs."""

    def __init__(self) -> None:
        super().__init__(3, 16)
        self.w, self.u = nn.Linear(3, 16), nn.Linear(16, 16, bias=False)

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.sigmoid(self.u(h)) * torch.cos(self.w(x))
        return h, h


class Partly(es.Cell):
    """A part of the input is never read, so that its gradient is no more than cleared."""

    def __init__(self) -> None:
        super().__init__(3, 16)
        self.w, self.u = nn.Linear(3, 32), nn.Linear(16, 16, bias=False)

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = 2 * torch.sigmoid(self.w(x)[:, :16] + self.u(h))
        return h, h


@pytest.mark.parametrize("kind", [Late, Turned, Twofold, Needed, Partly])
def test_nothing_overwrites_what_is_still_to_be_read(kind: type[es.Cell]) -> None:
    cell, found = kind().double(), []
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        xs = torch.randn(3, 7, 3, dtype=torch.float64, requires_grad=True)
        state = torch.randn_like(cell.initial_state(3, xs))
        ys, _ = es.scan(cell, xs, state, backend=backend)
        found.append([ys, *gradients(cell, xs, ys)])
    torch.testing.assert_close(*found)
