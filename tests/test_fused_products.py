"""Products over all steps: PyTorch's numbers and gradients, by the engine's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from everstep.scanning.fused import products, toolchain
from everstep.scanning.fused.products import mm, transposed

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")

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
