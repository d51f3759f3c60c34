"""Tracing a step: what is found in it, that the graph computes the same, and what is refused, by line."""

from __future__ import annotations

import gc
import inspect
import linecache
import subprocess
import sys
import weakref

import pytest
import torch
from laws import CELLS, D
from torch import Tensor, nn

import everstep as es
from everstep.state import leaves
from everstep.tracing import operations
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import is_free, trace

OUTSIDE = torch.tensor([0.5, -1.0, 2.0])


SPARSE = {"Reservoir", "Parallel reservoirs", "EchoState", "EchoState feedback"}
"""Sparse products are no operation of the engine; reservoirs have a loop of their own."""
CHANGES_A_FREE_LEAF = {"Attend coverage"}


@pytest.mark.parametrize("name", sorted(CELLS.keys() - SPARSE - CHANGES_A_FREE_LEAF))
def test_the_graph_computes_the_step(name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS[name]().double()
    modes = [module.training for module in cell.modules()]
    graph = trace(cell, torch.zeros(1, 1, D, dtype=torch.float64))
    x = torch.randn(graph.rows, D, dtype=torch.float64)
    assert [module.training for module in cell.modules()] == modes
    cell.eval()
    state = cell.initial_state(graph.rows, x)
    full = [leaf.new_zeros([n or 48 for n in leaf.shape]) if is_free(leaf) else leaf for _, leaf in leaves(state)]
    flat = [leaf + torch.randn_like(leaf) / 3 for leaf in full]
    got = graph.module(*cell.parameters(), *cell.buffers(), x, *flat)
    y, new = cell.step(x, es.state.unflatten(state, flat))
    for a, b in zip(got, [y, *(leaf for _, leaf in leaves(new))], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("cell", "early", "products", "flops"),
    [
        (es.LSTM(3, 5), 1, 1, 2 * 5 * 20),
        (es.GRUBefore(3, 5), 1, 2, 2 * 5 * 10 + 2 * 5 * 5),
        (es.MinGRU(3, 5), 1, 0, 0),
        (es.Stack(es.LSTM(3, 5), es.GRU(5, 4)), 1, 3, 2 * 5 * 20 + 2 * 5 * 12 + 2 * 4 * 12),
        (es.Zoneout(es.RNN(3, 5), 0.1), 1, 1, 2 * 5 * 5),
    ],
)
def test_what_can_be_hoisted_is_found(cell: es.Cell, early: int, products: int, flops: int) -> None:
    graph = trace(cell, torch.zeros(2, 4, 3))
    found = [o for o in graph.operations if o.kind == "product"]
    assert sum(o.hoisted for o in found) == early
    assert sum(not o.hoisted for o in found) == products
    assert sum(o.flops for o in found if not o.hoisted) == flops
    assert str(graph).startswith(f"products that need x alone: {early}; ")


@pytest.mark.parametrize(
    "function",
    [
        lambda x, h: h * torch.tensor([1.0, 2.0, 3.0]) + x * torch.tensor(0.5),
        lambda x, h: h * x.new_tensor([1.0, 2.0, 3.0]) + torch.as_tensor([0.5]),
        lambda x, h: h * OUTSIDE + x * OUTSIDE[:1],
        lambda x, h: torch.where(OUTSIDE > 0, h, x),
        lambda x, h: h @ torch.eye(3) + torch.arange(3, dtype=x.dtype) + x.new_full((len(x), 3), 2.0),
        lambda x, h: h + torch.scalar_tensor(2.0) * torch.linspace(0, 1, 3, device=x.device) + torch.zeros_like(x),
        lambda x, h: torch.einsum("bi,bj->bij", x, h).sum(1) + torch.stack(h.unbind(1)[::-1], 1),
        lambda x, h: torch.func.vmap(lambda a, b: torch.tanh(a) * b + OUTSIDE)(x, h),
        lambda x, h: (h.t().reshape(3, -1).t() + x).double().float(),
    ],
)
def test_constants_and_shapes_are_followed(function) -> None:
    graph = trace(stepping(function), torch.zeros(2, 4, 3))
    x, h = torch.randn(graph.rows, 3), torch.randn(graph.rows, 3)
    y, new = graph.module(x, h)
    torch.testing.assert_close(y, function(x, h))
    torch.testing.assert_close(new, y)


def test_a_tensor_made_in_a_step_runs_compiled() -> None:
    cell, xs = stepping(lambda x, h: torch.tanh(h * torch.tensor([0.1, 0.2, 0.3]) + x)), torch.randn(2, 4, 3)
    assert es.explain(cell, xs).backend == "fused"
    torch.testing.assert_close(cell(xs)[0], cell(xs, backend="reference")[0])


def test_a_derivative_inside_of_a_step_is_followed() -> None:
    def function(x: Tensor, h: Tensor) -> Tensor:
        v = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad((v * v * x).sum(), v, create_graph=True)
        return h - 0.1 * slope

    graph = trace(stepping(function), torch.zeros(2, 4, 3))
    x, h = torch.randn(graph.rows, 3), torch.randn(graph.rows, 3)
    torch.testing.assert_close(graph.module(x, h)[0], h - 0.2 * h * x)


def test_only_the_users_own_detach_is_in_the_graph() -> None:
    def found(function) -> int:
        return sum(o.name == "detach" for o in trace(stepping(function), torch.zeros(2, 4, 3)).operations)

    assert found(lambda x, h: h.requires_grad_().tanh()[:, :3].t().t() + x) == 0
    assert found(lambda x, h: h.detach() + x) == 1


def test_the_first_trace_imports_no_compiler() -> None:
    code = (
        "import sys, torch, everstep as es; from everstep.tracing.trace import trace; "
        "trace(es.LSTM(3, 5), torch.zeros(2, 4, 3)); trace(es.LayerNormGRU(3, 5), torch.zeros(2, 4, 3)); "
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_step_that_keeps_a_tensor_is_refused_and_left_as_it_was() -> None:
    kept: list[Tensor] = []

    def function(x: Tensor, h: Tensor) -> Tensor:
        kept.append(h)
        return kept[0] + x

    cell = stepping(function)
    with pytest.raises(Untraceable, match=rf"its step changes what 'kept' holds.* \({__file__}:\d+\)"):
        trace(cell, torch.zeros(2, 4, 3))
    assert kept == []


def test_a_tensor_kept_where_nobody_looks_is_told() -> None:
    kept: list[Tensor] = []
    hidden = weakref.WeakValueDictionary({"kept": (owner := Kept(kept))})

    def function(x: Tensor, h: Tensor) -> Tensor:
        hidden["kept"].tensors.append(h)
        return hidden["kept"].tensors[0] + x

    cell = stepping(function)
    with pytest.raises(Untraceable, match=rf"followed \({__file__}:\d+\): a tensor is kept from one call of a step"):
        trace(cell, torch.zeros(2, 4, 3))
    with pytest.raises(RuntimeError, match=r"add uses a tensor that a step stored"):
        cell.step(torch.zeros(2, 3), torch.zeros(2, 3))
    assert owner.tensors is kept


class Kept:
    """What can be referred to weakly."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors


@pytest.mark.instructions
@pytest.mark.parametrize("outside", ["autocast", "inference", "device"])
def test_the_callers_modes_stay_outside(outside: str) -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    cell, xs = stepping(lambda x, h: torch.tanh(h @ weight.t() + x)), torch.zeros(2, 4, 3)
    plain = [o.name for o in trace(cell, xs).operations]
    modes = {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode(),
        "device": torch.device("cpu"),
    }
    with modes[outside]:
        inside = [o.name for o in trace(cell, xs).operations]
        assert type(nn.functional.linear(torch.ones(2, 3), weight)) is Tensor
    assert [name for name in inside if name != "_to_copy"] == plain


def stepping(function) -> es.Cell:
    """A cell of 3 features whose step is `function`."""

    class Cell(es.Cell):
        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = function(x, h)
            return h, h

    return Cell(3)


def looks_at_values(x: Tensor, h: Tensor) -> Tensor:
    return h + x if x.sum() > 0 else h  # the line


def compares(x: Tensor, h: Tensor) -> Tensor:
    return h + x if torch.equal(x, h) else h  # the line


def lists(x: Tensor, h: Tensor) -> Tensor:
    return h * x.tolist()[0][0]  # the line


def points(x: Tensor, h: Tensor) -> Tensor:
    return h * x.data_ptr()  # the line


def looks_at_a_constant(x: Tensor, h: Tensor) -> Tensor:
    return h + x if OUTSIDE[0] > 0 else h  # the line


def changes_in_place(x: Tensor, h: Tensor) -> Tensor:
    return h.t().add_(x.t()).t()  # the line


def writes(x: Tensor, h: Tensor) -> Tensor:
    return torch.add(h, x, out=torch.empty(h.shape))  # the line


def differentiates_nothing(x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        return h + x  # the line


def infers(x: Tensor, h: Tensor) -> Tensor:
    with torch.inference_mode():
        return h + x  # the line


def moves(x: Tensor, h: Tensor) -> Tensor:
    return h + x.to("meta")  # the line


def fails(x: Tensor, h: Tensor) -> Tensor:
    return h @ x  # the line


def raises(x: Tensor, h: Tensor) -> Tensor:
    raise AssertionError  # the line


def draws(x: Tensor, h: Tensor) -> Tensor:
    return h + torch.rand_like(x)  # the line


def sorts(x: Tensor, h: Tensor) -> Tensor:
    return torch.sort(h + x)[0]  # the line


def grows(x: Tensor, h: Tensor) -> Tensor:
    return torch.cat([h, x], -1)


def widens(x: Tensor, h: Tensor) -> Tensor:
    return (h + x).double()


def doubles(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return h + x, h


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (looks_at_values, "decides by the value of a tensor"),
        (compares, "decides by the value of a tensor"),
        (lists, "decides by the value of a tensor"),
        (points, "decides by the value of a tensor"),
        (looks_at_a_constant, "decides by the value of a tensor"),
        (changes_in_place, "in place by add_"),
        (writes, "in place by add"),
        (differentiates_nothing, "calls add with gradients switched off"),
        (infers, "calls add with gradients switched off"),
        (moves, "works on meta by _to_copy, but x is on cpu"),
        (fails, "cannot be multiplied"),
        (raises, "cannot be followed .*: AssertionError"),
        (draws, "random numbers by rand_like; a mask belongs to the sequence"),
        (sorts, "uses sort, which the engine does not know"),
        (grows, r"leaf 'state' from \(batch, 3\) torch.float32 into \(batch, 6\)"),
        (widens, "into .* torch.float64"),
        (doubles, "gets the state leaves 'state', but gives '0', '1'"),
    ],
)
def test_refusals_name_the_operation_and_the_line(function, message: str) -> None:
    cell = stepping(function)
    with pytest.raises(Untraceable, match=message) as caught:
        trace(cell, torch.zeros(2, 4, 3))
    lines, first = inspect.getsourcelines(function)
    marked = [first + place for place, line in enumerate(lines) if "# the line" in line]
    assert all(f"{__file__}:{line}" in str(caught.value) for line in marked)
    assert str(caught.value) in str(es.explain(cell, torch.zeros(2, 4, 3)))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Cell(es.Cell):
        def step(self, x: Tensor, h: Tensor) -> tuple[float, Tensor]:  # type: ignore[override]
            return 1.0, h

    with pytest.raises(Untraceable, match=r"gives float, but its output_size asks for \(batch, 3\)"):
        trace(Cell(3), torch.zeros(2, 4, 3))


def test_user_modules_are_followed() -> None:
    class Normed(es.Cell):
        def __init__(self) -> None:
            super().__init__(3, 5)
            self.linear, self.norm = nn.Linear(8, 5), nn.LayerNorm(5)

        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.norm(self.linear(torch.cat([x, h], -1))))
            return h, h

    graph = trace(Normed(), torch.zeros(2, 4, 3))
    assert {o.kind for o in graph.operations} == {"view", "product", "reduction", "pointwise"}


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: torch.tanh(a),
        lambda a, b: a + b[:, None],
        lambda a, b: a * 2 > 1,
        lambda a, b: torch.where(a > 0, a, 0.0),
        lambda a, b: a / torch.tensor(2, dtype=torch.float64),
        lambda a, b: (a * b[:, None]).sum(-1),
        lambda a, b: a.amax(1, keepdim=True).expand(a.shape) * a,
    ],
)
def test_what_is_not_computed_has_the_shape_that_it_would_have(call, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(es.Cell):
        def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
            return like.new_zeros(batch, D), like.new_zeros(batch, 0, D)

        def step(self, x, state):
            found = call(state[1], x).to(x.dtype)
            y = x + found.reshape(len(x), -1).sum(-1, keepdim=True)
            return y, (y, state[1])

    found = []
    for large in (1, 1 << 40):
        monkeypatch.setattr(operations, "_LARGE", large)
        graph = trace(Reads(D), torch.zeros(1, 1, D))
        found.append([node.meta.get("val") for node in graph.module.graph.nodes])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        if isinstance(a, Tensor):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_a_large_state_is_not_made() -> None:
    """A matrix for each of a thousand rows takes gigabytes."""
    asked: list[int] = []

    class Matrices(es.Cell):
        def initial_state(self, batch: int, like: Tensor) -> Tensor:
            asked.append(batch)
            return like.new_zeros(batch, 70, 70)

        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state = 0.9 * state + x[:, :, None]
            return state.sum(1), state

    graph = trace(Matrices(70, 70), torch.zeros(1, 2, 70))
    assert set(asked) == {1, 2}  # two, since rows may depend on their number
    x, state, *_ = graph.module.graph.nodes
    assert [tuple(node.meta["val"].shape) for node in (x, state)] == [(1009, 70), (1009, 70, 70)]


def test_a_trace_that_is_gone_leaves_no_source() -> None:
    """A server traces a step for each picture of units: what PyTorch keeps for tracebacks would grow for months."""

    held = trace(es.RNN(3, 5), torch.zeros(1, 2, 3))
    held.module(*(node.meta["val"] for node in held.module.graph.nodes if node.op == "placeholder"))
    source = type(held.module).forward.__code__.co_filename
    assert source in linecache.cache
    assert "def forward" in inspect.getsource(type(held.module).forward)
    del held
    gc.collect()
    assert source not in linecache.cache
    assert source not in getattr(getattr(torch.fx.graph_module, "_loader", None), "eval_cache", {})
