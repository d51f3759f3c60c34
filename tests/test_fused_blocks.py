"""Products by blocks in the compiled loop: however a step writes them, and wherever they put the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_laws import assert_same, carried, everything, exactly, inputs, ways
from torch import Tensor, nn
from torch.nn import functional as F

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.native import toolchain
from tests.laws import refused

HEADS, WIDTH = 3, 4
Product = Callable[[Tensor, Tensor], Tensor]

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")

BLOCKS: dict[str, Product] = {
    "einsum": lambda h, w: torch.einsum("bhd,hde->bhe", h, w),
    "einsum of transposed": lambda h, w: torch.einsum("bhd,hed->bhe", h, w),
    "einsum that sums over heads": lambda h, w: torch.einsum("bhd,hde->be", h, w)[:, None] + h,
    "bmm": lambda h, w: torch.bmm(h.transpose(0, 1), w).transpose(0, 1),
    "bmm of columns": lambda h, w: torch.bmm(w, h.permute(1, 2, 0)).permute(2, 0, 1),
    "bmm, all heads first": lambda h, w: torch.tanh(torch.bmm(h.transpose(0, 1), w) * w[:, :1] - w[0, 0]).transpose(
        0, 1
    ),
    "baddbmm": lambda h, w: torch.baddbmm(w[:, :1], h.transpose(0, 1), w, beta=0.5).transpose(0, 1),
    "matmul of rows": lambda h, w: (h.unsqueeze(2) @ w).squeeze(2),
    "matmul of columns": lambda h, w: (w @ h.unsqueeze(-1)).squeeze(-1),
    "matmul of heads first": lambda h, w: (h.transpose(0, 1) @ w).transpose(0, 1),
    "numbers summed": lambda h, w: (h.unsqueeze(-1) * w).sum(2),
}
SHARED: dict[str, Product] = {
    "linear": lambda h, w: F.linear(h, w[0], w[1, 0]),
    "matmul": lambda h, w: h @ w[0],
    "matmul from the left": lambda h, w: (w[0] @ h.transpose(1, 2)).transpose(1, 2),
    "matmul of transposed": lambda h, w: h @ w[0].t(),
    "matmul of a part": lambda h, w: torch.cat([h[:, :, 1:] @ w[0, 1:, ::2], h[:, :, :2]], -1),
    "einsum": lambda h, w: torch.einsum("bhd,de->bhe", h, w[0]),
    "einsum over heads": lambda h, w: torch.einsum("bhd,hk->bkd", h, w[0, :HEADS, :HEADS]),
    "folded by hand": lambda h, w: (h.reshape(-1, WIDTH) @ w[0]).view(len(h), HEADS, WIDTH),
    "folded, and more by hand": lambda h, w: torch.sin(
        h.reshape(-1, WIDTH) @ w[0] + w[0, :1] + h.new_ones(1) - h.sum(2).view(-1, 1)
    ).view(len(h), HEADS, WIDTH),
    "folded, then one part": lambda h, w: (h.reshape(-1, WIDTH) @ w[0])[1::HEADS][:, None] + h,
    "of columns": lambda h, w: (w[0] @ h[:, 0].t()).t()[:, None] - h,
    "of a matrix of ones": lambda h, w: h @ torch.ones_like(w[0]) * w[0, 0, 0],
}

IN_FLOAT32 = {"einsum", "bmm of columns", "numbers summed", "shared matmul from the left", "shared folded by hand"}
"""One of each kind of row graph: the rest differ in how they are written, not in what is compiled."""


class Heads(es.Cell):
    """Gated, with a product for each head of the state; y has other numbers than the state."""

    def __init__(self, product: Product, of_x: bool = False):
        super().__init__(5, HEADS * WIDTH)
        self.product, self.of_x = product, of_x
        self.u = nn.Linear(5, HEADS * WIDTH)
        self.v, self.w = (nn.Parameter(torch.randn(HEADS, WIDTH, WIDTH) / 2) for _ in "vw")

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, HEADS, WIDTH)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        new = self.u(x).view(-1, HEADS, WIDTH)
        if self.of_x:
            new = self.product(torch.sin(new), self.v)
        gate = torch.sigmoid(self.product(state, self.v))
        h = gate * state + (1 - gate) * torch.tanh(new + self.product(gate * state, self.w))
        return h.flatten(1) * 2, h


def check(cell: es.Cell, dtype: torch.dtype, tolerance: float) -> None:
    cell = cell.to(dtype)
    xs, state = inputs(cell, 4, 7, dtype), carried(cell, 4, dtype)
    assert refused(fused, cell, xs, None, None) is None
    for way, how in ways(4, 7).items():
        if dtype == torch.float64 or way == "both":
            want = everything(cell, xs, state, "reference", **how)
            exact = want if dtype == torch.float64 else exactly(cell, xs, state, **how)
            assert_same(everything(cell, xs, state, "fused", **how), want, tolerance, exact)


@pytest.mark.sanitize
@pytest.mark.parametrize("name", [*BLOCKS, *(f"shared {name}" for name in SHARED)])
def test_products_of_heads(name: str) -> None:
    torch.manual_seed(5)
    cell = Heads(BLOCKS[name] if name in BLOCKS else SHARED[name.removeprefix("shared ")])
    check(cell, torch.float64, 1e-10)
    if name in IN_FLOAT32:
        check(cell, torch.float32, 1e-5)


@pytest.mark.parametrize("name", ["einsum", "bmm", "matmul of rows"])
def test_products_of_heads_of_x_are_taken_ahead_of_the_loop(name: str) -> None:
    torch.manual_seed(5)
    cell = Heads(BLOCKS[name], of_x=True)
    check(cell, torch.float64, 1e-10)
    stream, xs = es.Stream(cell), inputs(cell, 1, 5)
    assert stream.compiled, stream.reason
    torch.testing.assert_close(torch.stack([stream(x) for x in xs.unbind(1)], 1), cell(xs)[0].detach())


def test_heads_are_products_not_sums() -> None:
    xs = torch.zeros(2, 3, 5)
    for name, product in BLOCKS.items():
        number = {"numbers summed": 0, "einsum that sums over heads": 2}.get(name, 2 * HEADS)
        assert f"{number} products" in fused.describe_step(Heads(product), xs), name


def test_second_derivatives_of_heads() -> None:
    torch.manual_seed(5)
    cell = Heads(BLOCKS["bmm"]).double()
    xs = inputs(cell, 2, 3).requires_grad_()

    def run(backend: str) -> list[Tensor]:
        ys, _ = es.scan(cell, xs, backend=backend)
        (first,) = torch.autograd.grad(ys.square().sum(), xs, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), [xs, cell.v, cell.w]))

    for got, want in zip(run("fused"), run("reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "product",
    [
        lambda h, w: h.transpose(0, 1).softmax(2).transpose(0, 1),
        lambda h, w: h * h.transpose(0, 1).sum(2)[:1, :, None].transpose(0, 1),
        lambda h, w: torch.layer_norm(h.transpose(0, 1), h.shape[2:]).transpose(0, 1),
    ],
)
def test_the_batch_may_stand_behind_heads(product: Product) -> None:
    torch.manual_seed(5)
    check(Heads(product), torch.float64, 1e-10)


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (lambda h, w: h + (h[:, 0] @ h[:, 0].t() @ h[:, 0])[:, None], "rows of the batch against one another"),
        (lambda h, w: h + (h[:, 0].t() @ h[:, 0]).sum(), "rows of the batch against one another"),
        (lambda h, w: h.transpose(0, 1).sum(1)[:, None].transpose(0, 1) + h, "against one another by sum"),
        (lambda h, w: h.transpose(0, 1).softmax(1).transpose(0, 1), "against one another by _softmax"),
        (lambda h, w: h.transpose(0, 1).reshape(-1, WIDTH).view(HEADS, -1, WIDTH).transpose(0, 1), "folds the batch"),
        (lambda h, w: h[:1] + h, "rows of the batch apart"),
        (lambda h, w: h.reshape(-1, WIDTH)[: len(h), None] + h, "rows of the batch apart"),
    ],
)
def test_what_mixes_rows_is_refused(product: Product, reason: str) -> None:
    xs = torch.zeros(2, 3, 5)
    assert reason in (refused(fused, Heads(product), xs, None, None) or "")


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x - x.mean(0),
        lambda x: x.softmax(0),
        lambda x: x.t().log_softmax(-1).t(),
        lambda x: x @ (x.t() @ x),
        lambda x: x + x[:1],
        lambda x: x * x.var(0, keepdim=True),
    ],
)
def test_rows_of_x_are_not_mixed_with_steps(mixed: Callable[[Tensor], Tensor]) -> None:
    """What feeds a product of x is computed over all steps at once."""

    class Mixing(Heads):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return super().step(mixed(x), state)

    cell, xs = Mixing(BLOCKS["bmm"]), torch.randn(3, 4, 5)
    assert "rows of the batch" in (refused(fused, cell, xs, None, None) or "")
    assert torch.equal(cell(xs)[0], es.scan(cell, xs, backend="reference")[0])


class Rounding(es.Cell):
    """Everything that turns a number into a whole one."""

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, self.input_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = [torch.round(x), torch.ceil(x), torch.trunc(x), torch.remainder(x, 3), x % 1]
        return torch.cat(parts, 1), torch.remainder(state + x, 7) + 0 * torch.round(state)


@pytest.mark.parametrize("cell", [es.ClockworkRNN(5, 8), es.BatchNormLSTM(5, 4, steps=3).eval()])
def test_cells_that_count_their_steps_are_compiled(cell: es.Cell) -> None:
    assert refused(fused, cell, torch.zeros(2, 3, 5), None, None) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding(dtype: torch.dtype) -> None:
    near = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0, 1e-30, 5e-8, 0.49999997, 0.99999994, 2.9999998, 1e7 + 1])
    values = torch.cat([near, -near, torch.linspace(-9, 9, 37)]).to(dtype)
    cell = Rounding(len(values), 5 * len(values))
    xs = values.expand(2, 1, -1)
    got, want = (es.scan(cell, xs, backend=backend)[0] for backend in ("fused", "reference"))
    assert torch.equal(got, want)
    for bad, reason in ((lambda x: x % 0.3, "remainder by 0.3"), (lambda x: torch.round(x, decimals=2), "decimals")):
        cell = Heads(lambda h, w, f=bad: f(h))  # type: ignore[misc]
        assert reason in (refused(fused, cell, torch.zeros(2, 3, 5), None, None) or "")


class Unfed(es.Cell):
    """A cell within a cell, whose inputs are always zero."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.inner = es.GRU(2, 4)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.inner.step(x.new_zeros(len(x), 2), state + x.sum(-1, keepdim=True))
        return y, state


def test_a_product_of_numbers_known_before() -> None:
    cell = Unfed().double()
    xs = torch.randn(2, 5, 3, dtype=torch.float64)
    found = []
    for backend in ("fused", "reference"):
        ys, _ = es.scan(cell, xs, backend=backend)
        found.append([ys, *torch.autograd.grad(ys.square().sum(), list(cell.parameters()))])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
