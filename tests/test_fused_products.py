"""Products over all steps: PyTorch's numbers and gradients, by the engine's kernels, from wherever the factors lie."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends.fused.backend import _rows
from everstep.backends.fused.runtime.work_layout import Rows
from everstep.native import products, toolchain
from everstep.native.c_tables import OverSteps, Padding, SumsHeader, Way, int64_array
from everstep.native.kernels import has_bf16, kernels
from everstep.native.products import columns, mm, transposed, workspace_over_steps

pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine"),
]

SHAPES = [(0, 3, 4), (1, 1, 1), (5, 3, 7), (40, 1, 33), (37, 20, 1), (6, 0, 4), (300, 33, 70), (700, 64, 100)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bodies that the kernels ran."""
    ran: list[str] = []

    def note(of: Any, what: str, body: str) -> None:
        method = getattr(of, what)
        monkeypatch.setattr(of, what, lambda *arguments: (ran.append(body), method(*arguments))[1])

    note(products._Bodies, "multiply", "rows")
    note(products, "transposed", "columns")
    return ran


def draw(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_(grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_values_and_gradients_are_those_of_pytorch(threads: int, dtype: torch.dtype, n: int, k: int, m: int) -> None:
    x, w, dy = draw(n, k, dtype=dtype, grad=True), draw(m, k, dtype=dtype, grad=True), draw(n, m, dtype=dtype)
    found = []
    for product in (mm, torch.mm):
        y = product(x, w.t())
        found.append([y, *torch.autograd.grad(y, (x, w), dy)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-4)
    assert all(t.is_contiguous() for t in found[0])


def test_gradients_by_differences() -> None:
    x, w = draw(6, 3, grad=True), draw(4, 3, grad=True)
    for weight in (lambda w: w.t(), lambda w: w.t().contiguous(), lambda w: w.repeat(2, 2).t()[::2, 1::2]):
        assert torch.autograd.gradcheck(lambda x, w, of=weight: mm(x, of(w)), (x, w))  # type: ignore[misc]
        assert torch.autograd.gradgradcheck(lambda x, w, of=weight: mm(x, of(w)), (x, w))  # type: ignore[misc]


@pytest.mark.parametrize("n", [4, 500])
def test_any_strides(own: list[str], n: int) -> None:
    wide, weight = draw(2 * n, 90), draw(60, 80)
    for x in (wide[::2, 5:45], wide[:n, ::2][:, :40], draw(40, n).t(), draw(1, 40).expand(n, 40)):
        for w in (weight[:, :40].t(), weight[:40], weight[::2, ::2].t(), draw(1, 1).expand(40, 7)):
            torch.testing.assert_close(mm(x, w), torch.mm(x, w))
        torch.testing.assert_close(products.transposed(wide[:n, 3:50], x), wide[:n, 3:50].t() @ x)
        torch.testing.assert_close(products.transposed(x, wide[:n]), x.t() @ wide[:n])
    assert {*own} == {"rows", "columns"}


def test_what_is_frozen_is_not_computed(own: list[str]) -> None:
    for x_wanted, w_wanted in ((True, False), (False, True)):
        x, w = draw(5, 3, grad=x_wanted), draw(4, 3, grad=w_wanted)
        y = mm(x, w.t())
        own.clear()
        y.sum().backward()
        assert ("rows" in own, "columns" in own) == (x_wanted, w_wanted)
        assert (x.grad is not None, w.grad is not None) == (x_wanted, w_wanted)


def test_a_parameters_gradient_is_laid_out_as_the_parameter() -> None:
    for weight in (nn.Parameter(draw(70, 33)), nn.Parameter(draw(33, 70))):
        mm(draw(300, 33), weight.t() if len(weight) == 70 else weight).sum().backward()
        assert weight.grad is not None
        assert weight.grad.is_contiguous()


def test_results_do_not_depend_on_threads() -> None:
    x, w, g = draw(500, 60), draw(130, 60), draw(500, 130)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((mm(x, w.t()), transposed(g, x), transposed(x, g)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.instructions
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_where_pytorch_is_asked_instead(own: list[str]) -> None:
    x, w = draw(5, 3, dtype=torch.float32, grad=True), draw(3, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert mm(x, w).dtype == torch.bfloat16
    assert mm(x.bfloat16(), w.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(torch.func.vmap(lambda row: mm(row[None], w)[0])(x), x @ w)
    torch.testing.assert_close(torch.func.jvp(lambda x: mm(x, w), (x,), (x,))[1], x @ w)
    assert mm(x.to("meta"), w.to("meta")).shape == (5, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        mm(x, w.t())
    assert own == []
    y = mm(x, w)
    own.clear()
    many = torch.autograd.grad(y, x, torch.ones(2, 5, 4), is_grads_batched=True)[0]
    torch.testing.assert_close(many, (torch.ones(5, 4) @ w.t()).expand(2, 5, 3))
    assert own == []


def test_without_gradients(own: list[str]) -> None:
    x, w = draw(5, 3, grad=True), draw(3, 4, grad=True)
    with torch.no_grad():
        assert not mm(x, w).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(mm(x, w), x @ w)
    assert own == ["rows"] * 2


def test_only_some_gradients(threads: int) -> None:
    """Frozen weights, and inputs that need none, change nothing about the others."""
    torch.manual_seed(0)
    cell, xs = es.LSTM(20, 24), torch.randn(5, 45, 20)
    of = {"x": xs.clone().requires_grad_(), **dict(cell.named_parameters())}
    ys, state = es.scan(cell, of["x"], backend="fused")
    scale = torch.linspace(-1, 1, ys.numel()).view_as(ys)
    total = (ys * scale).sum() + sum(leaf.sum() for _, leaf in es.state.leaves(state))
    whole = dict(zip(of, torch.autograd.grad(total, list(of.values())), strict=True))
    for wanted in ("weight_ih", "weight_hh", "x"):
        for name, parameter in cell.named_parameters():
            parameter.requires_grad_(name == wanted)
        inputs = xs.clone().requires_grad_(wanted == "x")
        target = inputs if wanted == "x" else dict(cell.named_parameters())[wanted]
        ys, state = es.scan(cell, inputs, backend="fused")
        total = (ys * scale).sum() + sum(leaf.sum() for _, leaf in es.state.leaves(state))
        assert torch.equal(torch.autograd.grad(total, target)[0], whole[wanted])


@pytest.mark.sanitize
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


@pytest.mark.sanitize
@pytest.mark.parametrize("how", ["transposed", "as it is"])
def test_gradients_are_contiguous_as_weights_are(how: str) -> None:
    torch.manual_seed(0)
    cell, xs, found = Projected(how), torch.randn(3, 45, 20), {}
    for backend in ("fused", "reference"):
        ys, _ = es.scan(cell, xs, backend=backend)
        (found[backend],) = torch.autograd.grad(ys.square().sum(), [cell.weight])
    assert found["fused"].is_contiguous()
    torch.testing.assert_close(found["fused"], found["reference"], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what lies with padding, or belongs to the step before

KINDS = [(torch.float32, False), (torch.float64, False), (torch.float32, True)]


def gathered(x: Tensor, others: Tensor, rows: Rows, way: int) -> Tensor:
    """What belongs to each step, one after the other."""
    found, here = [], 0
    for r, length in enumerate(rows.length.tolist()):
        for step in range(length):
            before = way in (Way.BEFORE, Way.USED_BEFORE)
            if before and rows.resets is not None and rows.resets[here]:
                found.append(others[rows.count + r])
            elif before and step == 0:
                found.append(others[r])
            else:
                place = here if way in (Way.ALL, Way.BEFORE) else r * rows.time + step
                found.append(x[place - before])
            here += 1
    return torch.stack(found) if found else x[:0]


@pytest.mark.sanitize
@pytest.mark.parametrize(("dtype", "bf16"), KINDS)
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("lengths", [[3], [1, 1], [0, 5, 0, 0, 4, 7, 0], [7, 0], [300, 1, 0, 257, 256, 2], [0, 0]])
def test_rows_of_steps(lengths: list[int], resets: bool, dtype: torch.dtype, bf16: bool) -> None:
    if bf16 and not has_bf16():
        pytest.skip("no bfloat16 in this processor")
    torch.manual_seed(0)
    count, time = len(lengths), max([*lengths, 1]) + 2
    marks = torch.rand(count, time) < 0.3 if resets else None
    rows = _rows(torch.empty(count, time), torch.tensor(lengths), marks)
    for m, n in ((40, 40), (3, 200), (130, 3), (90, 1)):
        g, padded, others = (
            torch.randn(k, w, dtype=dtype) for k, w in ((rows.steps, m), (count * time, n), (2 * count, n))
        )
        values, width = torch.randn(count * time, 4, dtype=dtype), 4 * dtype.itemsize
        wanted = values.clone()
        for r, length in enumerate(lengths):
            wanted[r * time + length : (r + 1) * time] = 0
        for way in (Way.ALL, Way.USED, Way.BEFORE, Way.USED_BEFORE):
            x = padded if way in (Way.USED, Way.USED_BEFORE) else padded[: rows.steps]
            found = []
            for threads, of, how in ((1, gathered(x, others, rows, way), Way.ALL), (1, x, way), (3, x, way)):
                out = torch.full((m, n), torch.nan, dtype=dtype)
                room = workspace_over_steps(dtype, rows.steps, m, n)
                memory = torch.empty(threads * room, dtype=dtype)
                header = SumsHeader(1, 0, 1, memory.data_ptr(), room, *rows.addresses[:3], count, time)
                sizes = (rows.steps, m, n)
                one = OverSteps(g.data_ptr(), m, of.data_ptr(), n, *sizes, out.data_ptr(), n, how, others.data_ptr(), n)
                numbers = int64_array(header, one, Padding(values.data_ptr(), width))
                kernels(dtype, bf16).run(columns(dtype, bf16), ctypes.addressof(numbers), threads)
                found.append(out)
            assert torch.equal(found[0], found[1]), (way, m, n)
            assert torch.equal(found[0], found[2]), (way, m, n)
        assert torch.equal(values, wanted)
