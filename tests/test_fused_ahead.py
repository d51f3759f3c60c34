"""Products of inputs that the loop computes for some steps at once: the same bits, however the steps are divided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.scanning import fused
from everstep.scanning.fused import products, table, toolchain

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")


@es.gated("a b", state="h k")
def Weighed(x, h, s):  # type: ignore[no-untyped-def]
    """Backward reads the products of x, which therefore have to be kept."""
    return torch.tanh(x.a * h.a + x.b), s.k + x.b * s.h


class Highway(es.Cell):
    """x is read as it comes, and multiplied by a matrix that is not transposed; nothing is multiplied in the loop."""

    def __init__(self, size: int, _: int):
        super().__init__(size, size)
        self.weight = nn.Parameter(torch.randn(size, 2 * size) / size**0.5)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        a, b = (x @ self.weight).chunk(2, -1)
        c = torch.sigmoid(a) * state + torch.tanh(b)
        return c + x, c


CELLS = {"LSTM": es.LSTM, "GRU": es.GRU, "weighed": Weighed, "highway": Highway, "two products": es.GRUBefore}
WAYS = {
    "some steps at once": {"_NEAR": 1},
    "many steps at once": {"_NEAR": 1 << 40},
    "all steps before": {"_LARGE": 0},
    "all steps before, if a thread is idle": {"_ALONE": 0},
}


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@contextmanager
def taken(way: str) -> Iterator[None]:
    """Layouts as this way has them."""
    with pytest.MonkeyPatch.context() as changed:
        for constant, value in WAYS[way].items():
            changed.setattr(table, constant, value)
        table.layout.cache_clear()
        yield
    table.layout.cache_clear()


def everything(cell: es.Cell, xs: Tensor, ragged: bool) -> list[Tensor]:
    """Outputs without and with gradients, final state, and every gradient."""
    xs = xs.clone().requires_grad_()
    rows, steps = xs.shape[:2]
    lengths = (torch.arange(rows) * 17 % (steps + 1)).clamp_min(1) if ragged else None
    resets = torch.rand(rows, steps, generator=torch.Generator().manual_seed(0)) < 0.1 if ragged else None
    with torch.no_grad():
        alone, _ = es.scan(cell, xs, lengths=lengths, resets=resets, backend="fused")
    ys, state = es.scan(cell, xs, lengths=lengths, resets=resets, backend="fused")
    final = [leaf for _, leaf in es.state.leaves(state)]
    assert torch.equal(alone, ys)
    total = (ys * torch.linspace(-1, 1, ys.numel(), dtype=ys.dtype).view_as(ys)).sum() + sum(f.sum() for f in final)
    grads = torch.autograd.grad(total, [xs, *cell.parameters()])
    return [t.detach() for t in (ys, *final, *grads)]


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", CELLS)
def test_it_does_not_matter_how_many(name: str, rows: int, ragged: bool) -> None:
    torch.manual_seed(0)
    cell = CELLS[name](20, 24).double()
    xs = torch.randn(rows, 45, 20, dtype=torch.float64)
    found = []
    for way in WAYS:
        with taken(way):
            found.append(everything(cell, xs, ragged))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_ways_are_taken(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    chunks: list[int] = []
    layout = table.layout

    def note(*given: Any) -> table.Layout:
        found = layout(*given)
        chunks.append(found.chunk)
        return found

    monkeypatch.setattr(fused.call, "layout", note)
    cell, xs = es.LSTM(20, 24), torch.randn(1, 45, 20)
    found = []
    for way in WAYS:
        with taken(way):
            chunks.clear()
            es.scan(cell, xs, backend="fused")
            found.append({*chunks})
    assert found == [{14}, {45}, {0}, {45 if threads == 1 else 0}]  # one thread: none is idle


def test_only_some_gradients(threads: int) -> None:
    """Frozen weights, and inputs that need none, change nothing about the others."""
    torch.manual_seed(0)
    cell, xs = es.LSTM(20, 24), torch.randn(5, 45, 20)
    whole = dict(zip(("x", *dict(cell.named_parameters())), everything(cell, xs, False)[3:], strict=True))
    ys, _ = es.scan(cell, xs, backend="fused")
    scale = torch.linspace(-1, 1, ys.numel()).view_as(ys)
    for wanted in ("weight_ih", "weight_hh", "x"):
        for name, parameter in cell.named_parameters():
            parameter.requires_grad_(name == wanted)
        inputs = xs.clone().requires_grad_(wanted == "x")
        target = inputs if wanted == "x" else dict(cell.named_parameters())[wanted]
        ys, state = es.scan(cell, inputs, backend="fused")
        total = (ys * scale).sum() + sum(leaf.sum() for _, leaf in es.state.leaves(state))
        assert torch.equal(torch.autograd.grad(total, target)[0], whole[wanted])


def test_one_feature() -> None:
    """A single column has a way of its own through the kernel: dots along it."""
    torch.manual_seed(0)
    cell, xs = es.LSTM(1, 24).double(), torch.randn(5, 45, 1, dtype=torch.float64)
    cells = {backend: [] for backend in ("fused", "reference")}
    for backend, found in cells.items():
        inputs = xs.clone().requires_grad_()
        ys, _ = es.scan(cell, inputs, backend=backend)
        found += [ys, *torch.autograd.grad(ys.square().sum(), [inputs, *cell.parameters()])]
    for a, b in zip(*cells.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [0, 1, 63, 64, 1024, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_column(depth: int, dtype: torch.dtype) -> None:
    torch.manual_seed(depth)
    x, w = torch.randn(37, depth, dtype=dtype), torch.randn(depth, 1, dtype=dtype)
    got, want = products.product(x, w), x.double() @ w.double()
    rest = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.double(), want, rtol=rest, atol=rest * max(1, depth) ** 0.5)
    assert all(torch.equal(products.product(x[i : i + 1], w), got[i : i + 1]) for i in range(len(x)))


class Projected(es.Cell):
    """The weight of x is laid out as `how` says, and what it multiplies by is not."""

    def __init__(self, how: str):
        super().__init__(20, 24)
        self.how = how
        self.weight = nn.Parameter(torch.randn(*((24, 20) if how == "transposed" else (20, 24))))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        weight = self.weight.transpose(0, 1) if self.how == "transposed" else self.weight
        h = torch.tanh(x @ weight + 0.5 * state)
        return h, h


@pytest.mark.parametrize("how", ["transposed", "as it is"])
def test_gradients_are_contiguous_as_weights_are(how: str) -> None:
    torch.manual_seed(0)
    cell, xs, found = Projected(how), torch.randn(3, 45, 20), {}
    for backend in ("fused", "reference"):
        ys, _ = es.scan(cell, xs, backend=backend)
        (found[backend],) = torch.autograd.grad(ys.square().sum(), [cell.weight])
    assert found["fused"].is_contiguous()
    torch.testing.assert_close(found["fused"], found["reference"], rtol=1e-4, atol=1e-4)
