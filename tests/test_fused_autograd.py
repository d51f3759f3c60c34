"""Every way to ask the compiled engine for derivatives."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from laws import UserCell
from test_fused import carried_zero, compare, make
from test_laws import assert_same, carried, everything, inputs, ways
from torch import Tensor, nn

import everstep as es
from everstep.native import toolchain

F64 = torch.float64
pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


@pytest.mark.sanitize
@pytest.mark.parametrize("how", ["transposed", "every other", "expanded", "flipped"])
def test_inputs_that_are_not_contiguous(how: str) -> None:
    cell = make()
    xs = {
        "transposed": lambda: torch.randn(6, 4, 3, dtype=F64).transpose(0, 1),
        "every other": lambda: torch.randn(4, 6, 6, dtype=F64)[:, :, ::2],
        "expanded": lambda: torch.randn(4, 1, 3, dtype=F64).expand(4, 6, 3),
        "flipped": lambda: torch.randn(4, 6, 3, dtype=F64).flip(1),
    }[how]()
    state = torch.randn(5, 4, dtype=F64).t()
    for way in ways(4, 6).values():
        want, got = (es.scan(cell, xs, state, backend=b, **way)[0] for b in ("reference", "fused"))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
        grad = torch.randn(6, 4, 5, dtype=F64).transpose(0, 1)
        named = list(cell.parameters())
        for a, b in zip(*(torch.autograd.grad(o, named, grad) for o in (got, want)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_what_is_frozen_gets_no_gradient() -> None:
    cell = make(es.LSTM, 3, 5)
    frozen, *others = cell.parameters()
    frozen.requires_grad_(False)
    ys, _ = es.scan(cell, inputs(cell, 2, 4), backend="fused")
    ys.sum().backward()
    assert frozen.grad is None
    want = torch.autograd.grad(es.scan(cell, inputs_again(cell), backend="reference")[0].sum(), others)
    got = torch.autograd.grad(es.scan(cell, inputs_again(cell), backend="fused")[0].sum(), others)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def inputs_again(cell: es.Cell) -> Tensor:
    torch.manual_seed(5)
    return inputs(cell, 2, 4)


@pytest.mark.sanitize
def test_nothing_is_saved_without_gradients() -> None:
    cell = make()
    with torch.no_grad():
        ys, state = es.scan(cell, inputs(cell, 2, 4), backend="fused")
    assert ys.grad_fn is None
    assert not ys.requires_grad
    assert not state.requires_grad
    cell.requires_grad_(False)
    assert not es.scan(cell, inputs(cell, 2, 4), backend="fused")[0].requires_grad
    with torch.inference_mode():
        es.scan(cell, inputs(cell, 2, 4), backend="fused")


def test_only_the_final_state_or_one_leaf_of_it() -> None:
    cell = make(es.LSTM, 3, 5)
    for part in (lambda ys, s: s.h, lambda ys, s: s.c, lambda ys, s: ys[:, 1], lambda ys, s: ys[:, -1] + s.c):
        found = []
        for backend in ("reference", "fused"):
            total = part(*es.scan(cell, inputs_again(cell), backend=backend)).square().sum()
            found.append(torch.autograd.grad(total, list(cell.parameters())))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.sanitize
def test_a_retained_graph_and_what_the_user_keeps() -> None:
    """Large enough for the memory that is used again from call to call."""
    cell = make(es.LSTM, 16, 64, dtype=torch.float32)
    xs = torch.randn(16, 150, 16, requires_grad=True)
    ys, state = es.scan(cell, xs, backend="fused")
    kept, wanted = [ys.detach().clone(), state.c.detach().clone()], [xs, *cell.parameters()]
    first = torch.autograd.grad(ys.sum() + state.c.sum(), wanted, retain_graph=True)
    copies = [grad.clone() for grad in first]
    for _ in range(3):
        other, _ = es.scan(cell, torch.randn(16, 150, 16, requires_grad=True), backend="fused")
        other.square().sum().backward()
    assert torch.equal(ys, kept[0])
    assert torch.equal(state.c, kept[1])
    for a, b, c in zip(first, copies, torch.autograd.grad(ys.sum() + state.c.sum(), wanted), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("kind", [es.LSTM, UserCell])
def test_what_backward_needs_goes_when_it_is_over(kind: Callable[..., es.Cell]) -> None:
    first, second = (UserCell(), UserCell()) if kind is UserCell else (kind(3, 3), kind(3, 3))
    ys, _ = es.scan(first, torch.randn(2, 5, first.input_size), backend="fused")
    between = ys if kind is es.LSTM else ys[..., : second.input_size] * 1
    known = weakref.ref(between)
    loss = es.scan(second, between, backend="fused")[0].sum()
    del ys, between
    loss.backward(retain_graph=True)
    assert known() is not None
    loss.backward()
    assert known() is None
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


class Overwriting(es.Cell):
    """Its loop backward writes over inputs that were computed of a frozen matrix."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.u = nn.Parameter(torch.randn(4, 16), requires_grad=False)
        self.b = nn.Parameter(torch.randn(1, 16), requires_grad=False)
        self.w = nn.Parameter(torch.randn(4, 16))

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(batch, 4), like.new_zeros(batch, 4)

    def step(self, x, state):
        h, c = state
        i, f, g, o = (torch.addmm(self.b, x, self.u) + h @ self.w).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class Adding(es.Cell):
    """Its gradients need no x, but derivatives of them are computed of it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.w = nn.Parameter(torch.randn(4, 4))

    def step(self, x, h):
        h = torch.tanh(h @ self.w) + x
        return h, h


@pytest.mark.parametrize("what", ["xs", "u", "b"])
def test_a_change_in_place_before_a_second_backward(what: str) -> None:
    cell, xs = Overwriting().double(), torch.randn(3, 5, 4, dtype=F64)
    loss = es.scan(cell, xs, backend="fused")[0].square().sum()
    first = torch.autograd.grad(loss, cell.w, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, cell.w, retain_graph=True)[0], first)
    with torch.no_grad():
        (xs if what == "xs" else getattr(cell, what)).zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_change_in_place_before_a_second_derivative() -> None:
    cell, xs = Adding().double(), torch.randn(3, 5, 4, dtype=F64)
    losses = [es.scan(cell, xs, backend="fused")[0].square().sum() for _ in range(3)]
    want = torch.autograd.grad(losses[0], cell.w, create_graph=True)[0]
    xs.zero_()
    torch.testing.assert_close(torch.autograd.grad(losses[1], cell.w)[0], want, rtol=0, atol=1e-9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(losses[2], cell.w, create_graph=True)


def test_what_inference_mode_has_made_has_no_version() -> None:
    cell = Overwriting().double()
    with torch.inference_mode():
        xs = torch.randn(3, 5, 4, dtype=F64)
    loss = es.scan(cell, xs, backend="fused")[0].square().sum()
    first = torch.autograd.grad(loss, cell.w, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, cell.w)[0], first)


@pytest.mark.parametrize("kind", [es.GRU, es.LSTM, UserCell])
def test_derivatives_of_derivatives(kind: Callable[..., es.Cell]) -> None:
    cell = UserCell().double() if kind is UserCell else make(kind, 3, 4)
    lengths, resets = torch.tensor([3, 2]), torch.tensor([[False, True, False], [False, False, True]])
    parameters = [p.detach().clone().requires_grad_() for p in cell.parameters()]
    names = [name for name, _ in cell.named_parameters()]

    def scanned(xs: Tensor, *values: Tensor) -> Tensor:
        for name, value in zip(names, values, strict=True):
            owner, _, last = name.rpartition(".")
            module = cell.get_submodule(owner)
            module._parameters[last] = value  # type: ignore[assignment]
        return es.scan(cell, xs, lengths=lengths, resets=resets, backend="fused")[0]

    xs = torch.randn(2, 3, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(scanned, (xs, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(scanned, (xs, *parameters), fast_mode=True)


class Shared(es.Cell):
    """A module under two names, a parameter in two modules, buffers, one of whole numbers."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.first, self.other, self.inner = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.second, self.other.weight = self.first, self.first.weight
        self.register_buffer("shift", torch.randn(4))
        self.register_buffer("count", torch.tensor(3))

    def step(self, x, h):
        h = torch.tanh(self.first(x) + self.second(2 * x) - self.other(x) + self.inner(h) + self.shift)
        return h, h


@pytest.mark.sanitize
def test_shared_modules_and_parameters() -> None:
    cell = Shared().double()
    held = {name: id(p) for name, p in cell.named_parameters(remove_duplicate=False)}
    xs = inputs(cell, 3, 5)
    compare(cell, xs)
    assert {name: id(p) for name, p in cell.named_parameters(remove_duplicate=False)} == held
    cell.requires_grad_(False)
    state = carried(cell, 3).requires_grad_()
    got, want = (
        torch.autograd.grad(es.scan(cell, xs, state, backend=backend)[0].sum(), state)[0]
        for backend in ("fused", "reference")
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_gradients_through_chunks() -> None:
    """A carried state that is part of the graph."""
    cell = make(es.LSTM, 3, 5)
    found = []
    for backend in ("reference", "fused"):
        xs = inputs_again(cell).requires_grad_()
        first, state = es.scan(cell, xs[:, :2], backend=backend)
        second, _ = es.scan(cell, xs[:, 2:], state, backend=backend)
        found.append(torch.autograd.grad((first.sum() + second.square().sum()), [xs, *cell.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


class Stopped(es.Cell):
    """Gradients stop at detach."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.linear = nn.Linear(3, 4)
        self.again = nn.Linear(4, 4)

    def step(self, x, h):
        new = torch.tanh(self.linear(x) + self.again(h.detach()) * 0.5 + 0.3 * h)
        return new * h[:, :1].detach(), new


def test_detach_inside_of_a_step_stops_gradients() -> None:
    cell = Stopped().double()
    compare(cell, inputs(cell, 3, 5), resets=ways(3, 5)["both"]["resets"])


class Silent(Stopped):
    """Gradients stop where they are switched off."""

    def step(self, x, h):
        with torch.no_grad():
            gate = torch.sigmoid(h)
        new = torch.tanh(self.linear(x) + self.again(h) * gate)
        return new, new


def test_gradients_switched_off_inside_of_a_step() -> None:
    cell = Silent().double()
    xs = inputs(cell, 3, 5)
    want = everything(cell, xs, carried_zero(cell, 3), "reference")
    assert_same(everything(cell, xs, carried_zero(cell, 3), "auto"), want, 1e-9)
