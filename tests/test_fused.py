"""The compiled engine against the reference: random cells, every way of calling, and what is refused."""

from __future__ import annotations

import copy
import ctypes
import io
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import UserCell, refused
from random_cells import differences
from test_laws import assert_same, carried, everything, inputs, ways
from torch import Tensor, nn

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.explanation import explain
from everstep.native import build, toolchain

F64 = torch.float64
pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


def make(cell: Callable[..., es.Cell] = es.GRU, *sizes: int, dtype: torch.dtype = F64, **options: Any) -> es.Cell:
    torch.manual_seed(1)
    return cell(*(sizes or (3, 5)), **options).to(dtype)


def compare(cell: es.Cell, xs: Tensor, state: object = None, tolerance: float = 1e-9, **how: object) -> None:
    """Everything that fused gives is what the reference gives."""
    state = carried(cell, len(xs), xs.dtype) if state is None else state
    want = everything(cell, xs, state, "reference", **how)
    assert_same(everything(cell, xs, state, "fused", **how), want, tolerance)


# -------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.sanitize
def test_two_python_threads_at_once() -> None:
    cells = [make(es.LSTM, 3, 16), make(es.GRU, 3, 16)]
    xs = inputs(cells[0], 4, 30)
    want = [everything(cell, xs, carried_zero(cell, 4), "reference") for cell in cells]
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for _ in range(20):
                assert_same(everything(cells[k], xs, carried_zero(cells[k], 4), "fused"), want[k], 1e-9)
        except BaseException as error:  # it is raised again below
            failures.append(error)

    workers = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures


def carried_zero(cell: es.Cell, batch: int) -> object:
    return cell.initial_state(batch, torch.zeros(1, dtype=F64))


# ------------------------------------------------------------------------------------------------------ unusual numbers


@pytest.mark.sanitize
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 5e-324, 1e-310, 1e150])
@pytest.mark.parametrize("kind", [es.LSTM, es.GRU, es.LayerNormGRU, es.SLSTM, es.MLSTM, es.MinGRU, UserCell])
def test_nan_infinity_and_denormals_flow_as_in_the_reference(kind: Callable[..., es.Cell], number: float) -> None:
    cell = UserCell().double() if kind is UserCell else make(kind, 3, 6)
    xs = inputs(cell, 3, 6)
    xs[1, 2, 0] = number
    want = es.scan(cell, xs, backend="reference")[0]
    torch.testing.assert_close(es.scan(cell, xs, backend="fused")[0], want, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.isfinite(want[0]).all()


@pytest.mark.sanitize
@pytest.mark.parametrize("op", ["relu", "sigmoid", "tanh", "abs", "sign", "elu", "softplus", "hardtanh", "leaky_relu"])
def test_pointwise_operations_on_unusual_numbers(op: str) -> None:
    fn = getattr(torch, op, None) or getattr(nn.functional, op)
    check_pointwise(fn, f"unusual {op}")


OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: torch.clamp(h, -0.5, 0.5),
    "maximum": lambda h: torch.maximum(h, 0.25 * torch.ones_like(h)),
    "minimum": lambda h: torch.minimum(h, torch.zeros_like(h)),
    "where": lambda h: torch.where(h > 0, h, -h),
    "softmax": lambda h: torch.softmax(h, -1),
    "amax": lambda h: h - h.amax(-1, keepdim=True),
    "exp": lambda h: torch.exp(h),
    "log1p": lambda h: torch.log1p(torch.abs(h)),
    "where NaN": lambda h: torch.where(h != h, 0.5, h),
    "selu": lambda h: nn.functional.selu(h),
    "logsigmoid": lambda h: nn.functional.logsigmoid(h),
    "hardsigmoid": lambda h: nn.functional.hardsigmoid(h) * 0 + h,
}


@pytest.mark.sanitize
@pytest.mark.parametrize("name", OTHER)
def test_other_operations_on_unusual_numbers(name: str) -> None:
    check_pointwise(OTHER[name], f"other {name}")


class Through(es.Cell):
    """A state that stands still and a function of it, so that the function sees exactly the numbers that are given."""

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        super().__init__(1, 12)
        self.fn = fn

    def step(self, x, state):
        return self.fn(state) + 0 * x, state


def check_pointwise(fn: Callable[[Tensor], Tensor], name: str) -> None:
    big = torch.finfo(F64).max
    numbers = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 20.0, -800.0, big, float("nan"), float("inf"), -float("inf")]
    state = torch.tensor(
        [numbers, [0.0] * 12, [-0.5, 0.5] * 6, [x if x == x and abs(x) < 1e9 else 1.0 for x in numbers]]
    )
    cell, xs = Through(fn), torch.zeros(4, 2, 1, dtype=F64)
    got, want = (
        dict(zip(("ys", "grad"), with_grad(cell, xs, state.double(), backend), strict=True))
        for backend in ("fused", "reference")
    )
    torch.testing.assert_close(got["ys"], want["ys"], rtol=1e-12, atol=1e-300, equal_nan=True)
    # gradients of finite numbers; beyond, PyTorch's own formulas differ from each other
    torch.testing.assert_close(got["grad"][1:], want["grad"][1:], rtol=1e-12, atol=1e-14, equal_nan=True)


def with_grad(cell: es.Cell, xs: Tensor, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    state = state.clone().requires_grad_()
    ys, _ = es.scan(cell, xs, state, backend=backend)
    return ys.detach(), torch.autograd.grad(ys.sum(), state)[0]


# ------------------------------------------------------------------------------------------------------------- autograd


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


# -------------------------------------------------------------------------------------------------- PyTorch's machinery


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # inside of PyTorch
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward mode"])
def test_function_transforms_take_another_backend(transform: str) -> None:
    cell = make(es.GRUBefore)
    xs = inputs(cell, 2, 4)

    def total(xs: Tensor, backend: str = "auto") -> Tensor:
        return es.scan(cell, xs, backend=backend)[0].square().sum()

    expected = torch.autograd.grad(total(leaf := xs.clone().requires_grad_(), "reference"), leaf)[0]
    if transform == "grad":
        torch.testing.assert_close(torch.func.grad(total)(xs), expected)
    elif transform == "vmap":
        many = torch.stack([xs, 2 * xs])
        torch.testing.assert_close(torch.func.vmap(total)(many), torch.stack([total(xs), total(2 * xs)]))
    elif transform == "jvp":
        _, along = torch.func.jvp(total, (xs,), (torch.ones_like(xs),))
        torch.testing.assert_close(along, expected.sum())
    else:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(xs, torch.ones_like(xs))
            along = torch.autograd.forward_ad.unpack_dual(total(dual)).tangent
        torch.testing.assert_close(along, expected.sum())


@pytest.mark.instructions
def test_autocast() -> None:
    cell = make(es.LSTM, 16, 32, dtype=torch.float32)
    xs = torch.randn(3, 7, 16)
    want = everything(cell, xs, carried(cell, 3, torch.float32), "reference")
    with torch.autocast("cpu", torch.bfloat16):
        ys, state = es.scan(cell, xs)
        ys.float().sum().backward()
    assert state.c.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(ys.float(), es.scan(cell, xs, backend="reference")[0], rtol=0, atol=0.05)
    assert want["ys"].shape == ys.shape


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch itself reads it, where it goes on after the loop
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")  # and uses what torch 2.11 says not to
def test_a_compiled_caller() -> None:
    cell = make()
    xs = inputs(cell, 2, 4)
    compiled = torch.compile(lambda xs: es.scan(cell, xs)[0] * 2, backend="eager")
    try:
        torch.testing.assert_close(compiled(xs), es.scan(cell, xs, backend="reference")[0] * 2)
    finally:
        torch._dynamo.reset()


def test_export_gives_no_wrong_result() -> None:
    cell = make()
    xs = inputs(cell, 2, 4)
    es.scan(cell, xs, backend="fused")  # known to the engine before
    try:
        program = torch.export.export(cell, (xs,))
    except Exception:  # refusing is well, with whatever PyTorch raises
        return
    torch.testing.assert_close(program.module()(xs)[0], cell(xs)[0])


# ----------------------------------------------------------------------------------------------- cells that live longer


@pytest.mark.parametrize("how", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell)), "saved"])
def test_copies_of_a_cell_that_has_run(how: Any) -> None:
    cell = make(es.LSTM, 3, 5)
    xs = inputs(cell, 2, 4)
    want = es.scan(cell, xs, backend="fused")[0]
    if how == "saved":
        file = io.BytesIO()
        torch.save(cell, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = how(cell)
    assert torch.equal(es.scan(other, xs, backend="fused")[0], want)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(2)
    assert torch.equal(es.scan(cell, xs, backend="fused")[0], want)
    assert not torch.equal(es.scan(other, xs, backend="fused")[0], want)


class Options(es.Cell):
    """Options of many kinds."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.linear = nn.Linear(3, 4)
        self.alpha, self.how, self.table = 0.5, "tanh", {"scales": [1.0, 2.0]}
        self.activation: Callable[[Tensor], Tensor] = torch.sigmoid
        self.constant = torch.full((4,), 0.25, dtype=F64)

    def step(self, x, h):
        inner = self.linear(x) * self.table["scales"][0] + self.alpha * h + self.constant
        new = self.activation(getattr(torch, self.how)(inner))
        return (new if self.training else 2 * new), new


def test_a_change_of_the_cell_is_noticed() -> None:
    cell = Options().double()
    xs = inputs(cell, 2, 5)
    seen = []

    def check() -> None:
        seen.append(es.scan(cell, xs, backend="fused")[0])
        torch.testing.assert_close(seen[-1], es.scan(cell, xs, backend="reference")[0], rtol=0, atol=1e-9)

    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: setattr(cell, "alpha", 0.25),
        lambda: setattr(cell, "how", "sin"),
        lambda: cell.table["scales"].__setitem__(0, 3.0),
        lambda: setattr(cell, "activation", torch.tanh),
        lambda: setattr(cell, "activation", nn.Softplus()),
        lambda: cell.eval(),
        lambda: setattr(cell, "constant", torch.full((4,), -0.5, dtype=F64)),
        lambda: cell.constant.mul_(2),
        lambda: cell.linear.weight.data.mul_(1.5),
        lambda: setattr(cell, "linear", nn.Linear(3, 4, bias=False).double()),
        lambda: setattr(cell, "linear", nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 4)).double()),
    ]
    for change in changes:
        change()
        check()
        assert len(seen) < 2 or not torch.equal(seen[-1], seen[-2])


@pytest.mark.sanitize
def test_functions_that_come_and_go_are_told_apart() -> None:
    cell = Options().double()
    xs = inputs(cell, 1, 3)
    for k in range(6):
        cell.activation = lambda v, k=k: v * k
        got = es.scan(cell, xs, backend="fused")[0]
        torch.testing.assert_close(got, es.scan(cell, xs, backend="reference")[0], rtol=0, atol=1e-9)


def test_an_optimizer_step_is_seen() -> None:
    cell = make()
    xs = inputs(cell, 2, 4)
    optimizer = torch.optim.SGD(cell.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        es.scan(cell, xs, backend="fused")[0].square().sum().backward()
        optimizer.step()
        torch.testing.assert_close(
            es.scan(cell, xs, backend="fused")[0], es.scan(cell, xs, backend="reference")[0], rtol=0, atol=1e-9
        )


# -------------------------------------------------------------------------------------------------- processes and tools

SCRIPT = """
import os, torch, everstep as es
torch.manual_seed(0)
cell, xs = es.GRUBefore(3, 5), torch.randn(2, 4, 3)
want = es.scan(cell, xs, backend="reference")[0]
"""


def process(body: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT + body], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_forked_child() -> None:
    out = process("""
first = es.scan(cell, xs, backend="fused")[0]
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    ys = es.scan(cell, xs.requires_grad_(), backend="fused")[0]
    ys.sum().backward()
    os._exit(0 if torch.allclose(ys, want, atol=1e-6) and torch.equal(ys, first) else 3)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert "child 0" in out


def test_a_child_forked_while_another_thread_compiles() -> None:
    out = process("""
import signal, threading
from everstep.backends.fused import backend as fused
from everstep.native import build, memory_pool as pool
taken, done = threading.Event(), threading.Event()
def hold():
    with build._lock, pool._lock, fused._lock:
        taken.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
taken.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    torch.set_num_threads(1)
    ys = es.scan(cell, xs, backend="fused")[0]
    pool.empty(xs, 1 << 18)
    os._exit(0 if torch.allclose(ys, want, atol=1e-6) else 3)
done.set()
thread.join()
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert "child 0" in out


def test_without_a_compiler() -> None:
    out = process(
        """
for _ in range(3):
    assert torch.equal(es.scan(cell, xs)[0], want)
es.scan(es.LEM(3, 4), xs)
print(es.explain(cell, xs))
""",
        EVERSTEP_COMPILER="none",
    )
    assert out.count("switches compiling off. Cells run on PyTorch's kernels where it has them, else step by step") == 1
    assert "not fused: EVERSTEP_COMPILER=none switches compiling off" in out
    assert "GRUBefore(3, 5): reference" in out


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo broken 1.0;; *) echo "error: broken"; exit 1;; esac\n')
    broken.chmod(0o755)
    out = process(
        """
for _ in range(3):
    assert torch.equal(es.scan(cell, xs)[0], want)
    es.scan(es.LEM(3, 4), xs)
""",
        CXX=str(broken),
        EVERSTEP_CACHE=str(tmp_path / "cache"),
    )
    assert out.count("full log:") == 1
    assert str(tmp_path / "cache") in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    check_unwritable(tmp_path / "cache")


def test_a_cache_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_unwritable(tmp_path / "file")


def check_unwritable(cache: Path) -> None:
    out = process(
        """
assert torch.allclose(es.scan(cell, xs, backend="fused")[0], want, atol=1e-6)
""",
        EVERSTEP_CACHE=str(cache),
    )
    assert out.count("cannot be kept there") == 1


# ------------------------------------------------------------------------------------------------------ what is refused


class Bad(es.Cell):
    """Steps that no engine can follow."""

    def __init__(self, kind: str) -> None:
        super().__init__(3, 3)
        self.kind = kind

    def step(self, x, h):
        if self.kind == "dtype":
            return x, h.float()
        if self.kind == "shape":
            return x, torch.cat([h, h], -1)
        if self.kind == "control flow":
            if h.sum() > 0:
                return x, x
            return x, h
        if self.kind == "in place":
            h[:, :1].add_(x[:, :1])
            return h, h
        if self.kind == "random":
            h = h + torch.rand_like(h)
            return h, h
        if self.kind == "batch":
            h = h + x.mean(0)
            return h, h
        h = torch.sort(h + x, -1).values
        return h, h


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dtype", "turns state leaf 'state' from (batch, 3) torch.float64 into (batch, 3) torch.float32"),
        ("shape", "turns state leaf 'state' from"),
        ("control flow", "decides by the value of a tensor"),
        ("in place", "changes a tensor in place by add_"),
        ("random", "draws random numbers by rand_like"),
        ("batch", "sets rows of the batch against one another by"),
        ("unknown", "uses sort"),
    ],
)
def test_refusals_name_the_reason_and_the_place(kind: str, reason: str) -> None:
    cell, xs = Bad(kind), torch.randn(2, 3, 3, dtype=F64)
    why = refused(fused, cell, xs, None, None)
    assert why is not None
    assert reason in why
    if kind not in ("dtype", "shape", "batch"):
        assert f"({__file__}:" in why
    with pytest.raises(ValueError, match="backend 'fused' cannot run Bad"):
        es.scan(cell, xs, backend="fused")
    assert "fused" in explain(cell, xs).passed
    if kind in ("dtype", "shape"):
        with pytest.raises(
            ValueError, match=r"Bad\.step gives another state than it gets: state leaf 'state' should have"
        ):
            es.scan(cell, xs)
    if kind in ("batch", "unknown", "control flow"):
        assert torch.equal(es.scan(cell, xs)[0], es.scan(cell, xs, backend="reference")[0])


def test_a_cell_that_is_not_compiled_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(toolchain, "_noticed", set())
    xs = torch.randn(2, 3, 3, dtype=F64)
    es.explain(Bad("unknown"), xs)
    es.scan(Bad("unknown"), xs, backend="reference")
    assert not caplog.records  # who asks knows
    for _ in range(2):
        es.scan(Bad("unknown"), xs)
        es.scan(es.Zoneout(Bad("unknown"), 0.5), xs)
    reason = "runs step by step, not compiled: its step uses sort, which the engine does not know"
    assert [told.split(" (")[0] for told in caplog.messages] == [f"Bad {reason}", f"Zoneout {reason}"]
    caplog.clear()
    es.scan(Bad("unknown"), xs.bfloat16())  # nothing that the cell does
    es.scan(es.Accumulator(3), xs.bfloat16())
    assert not caplog.records


class Mute(es.Cell):
    """Gives zeros, whatever comes."""

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return ()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return torch.zeros_like(x), state


def test_a_step_that_reads_nothing_is_refused() -> None:
    cell, xs = Mute(3, 3), torch.randn(2, 4, 3)
    assert torch.equal(es.scan(cell, xs)[0], torch.zeros(2, 4, 3))
    assert "reads no input" in (refused(fused, cell, xs, None, None) or "")


def test_half_precision_is_refused() -> None:
    cell = make(dtype=torch.bfloat16)
    assert "float32 or float64" in (refused(fused, cell, inputs(cell, 2, 3, torch.bfloat16), None, None) or "")


# ------------------------------------------------------------------------------------------------- elementary functions

HARNESS = """
#define EACH(F) \\
  extern "C" void F##_f32(const float* a, float* b, long n) { _Pragma("omp simd") \\
    for (long i = 0; i < n; ++i) b[i] = es_##F(a[i]); } \\
  extern "C" void F##_f64(const double* a, double* b, long n) { _Pragma("omp simd") \\
    for (long i = 0; i < n; ++i) b[i] = es_##F(a[i]); }
EACH(exp) EACH(tanh) EACH(sigmoid) EACH(log) EACH(log1p) EACH(expm1)
"""
LIMITS = {"exp": (1, 2), "tanh": (2, 2), "sigmoid": (3, 3), "log": (1, 1), "log1p": (3, 3), "expm1": (4, 4)}
"""The largest error in units in the last place: float32, float64."""


def exact(name: str, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x)) if name == "sigmoid" else getattr(np, name)(x)


def grid(dtype: Any) -> np.ndarray:
    """Dense where the functions bend, through all exponents, and around what is special."""
    info = np.finfo(dtype)
    around = [0.625, -0.625, 87.3, -87.3, -103.9, 88.8, 100, -110, 709.7, 709.8, -708.4, -745.2, 720, -760]
    parts = [
        np.linspace(-110, 110, 400_001),
        np.linspace(-1, 1, 400_001),
        np.linspace(-760, 760, 200_001),
        *(np.linspace(x * 0.999, x * 1.001, 20_001) for x in around),
        np.geomspace(float(info.tiny), 800, 100_001),
        -np.geomspace(float(info.tiny), 800, 100_001),
        np.geomspace(float(info.smallest_subnormal), float(info.tiny), 1001),
        np.array([0.0, -0.0, info.max, info.min]),
    ]
    return np.concatenate(parts).astype(dtype)


def errors(name: str, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The grid, and the error at every place of it in units in the last place of the exact result."""
    library = build.load(Path(build.__file__).with_name("math.h").read_text("utf-8") + HARNESS, "math")
    run = getattr(library, f"{name}_f{np.dtype(dtype).itemsize * 8}")
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    x = grid(dtype)
    got = np.empty_like(x)
    run(x.ctypes.data, got.ctypes.data, len(x))
    with np.errstate(all="ignore"):
        want = exact(name, x.astype(np.float64 if dtype == np.float32 else np.longdouble))
        rounded = want.astype(dtype)
        assert np.array_equal(np.isinf(got), np.isinf(rounded))
        assert np.array_equal(np.isnan(got), np.isnan(rounded))
        # a sigmoid below the smallest normal number may be 0
        finite = np.isfinite(rounded) & ((name != "sigmoid") | (np.abs(rounded) >= np.finfo(dtype).tiny))
        assert np.all(got[~finite & np.isfinite(rounded)] <= np.finfo(dtype).tiny)
        return x[finite], np.abs((got.astype(want.dtype) - want)[finite] / np.spacing(np.abs(rounded[finite])))


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_elementary_functions(name: str, dtype: Any) -> None:
    x, wrong = errors(name, dtype)
    assert wrong.max() <= LIMITS[name][dtype == np.float64], (x[wrong.argmax()], wrong.max())


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_elementary_functions_at_the_ends(name: str, dtype: Any) -> None:
    library = build.load(Path(build.__file__).with_name("math.h").read_text("utf-8") + HARNESS, "math")
    run = getattr(library, f"{name}_f{np.dtype(dtype).itemsize * 8}")
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0] * 5, dtype)
    got = np.empty_like(x)
    run(x.ctypes.data, got.ctypes.data, len(x))
    with np.errstate(all="ignore"):
        want = exact(name, x)
    assert np.isnan(got[::5]).all()
    assert np.array_equal(got, want, equal_nan=True)


def test_memory_of_inference_mode_serves_training_after_it() -> None:
    cell, xs = es.LSTM(64, 64), torch.randn(64, 50, 64)
    for _ in range(2):
        with torch.inference_mode():
            want = cell(xs)[0].clone()
        ys, _ = cell(xs.clone().requires_grad_())
        ys.square().sum().backward()
        assert not ys.is_inference()
        torch.testing.assert_close(ys, want)


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda v: torch.softmax(v, -1),
    "log_softmax": lambda v: torch.log_softmax(v, -1),
    "amax": lambda v: v - v.amax(-1, keepdim=True),
    "amin": lambda v: v * v.amin(-1, keepdim=True),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_the_place_of_a_maximum_is_not_found_by_numbers_computed_again(name: str) -> None:
    class Extreme(es.Cell):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.p, self.out = nn.Parameter(torch.rand(3) * 2 - 1), nn.Linear(3, 3)

        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            v = torch.tanh(h * h)
            v = torch.lerp(v, self.p, torch.sigmoid(v - self.p))  # cheap enough to be computed again
            h = torch.tanh(self.out(EXTREMES[name](v)) + x)
            return h, h

    for seed in range(4):
        torch.manual_seed(seed)
        assert not differences(Extreme().double(), F64, seed, 5, 6)


def test_gradients_of_any_kind_go_backward() -> None:
    cell = make()
    xs = inputs(cell, 2, 3).requires_grad_()
    found = []
    for backend in ("reference", "fused"):
        ys, _ = es.scan(cell, xs, backend=backend)
        eye = torch.eye(ys.numel(), dtype=ys.dtype).view(-1, *ys.shape)
        (batched,) = torch.autograd.grad(ys, xs, eye, is_grads_batched=True, retain_graph=True)
        (negated,) = torch.autograd.grad(ys, xs, torch._neg_view(torch.ones_like(ys)))
        assert not batched.requires_grad
        found.append((batched, negated))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
