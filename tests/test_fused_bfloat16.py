"""Products in bfloat16 inside the compiled loop: what autocast asks for, where the processor has them."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.backends.fused.runtime import call
from everstep.native.kernels import has_bf16, kernels
from everstep.native.products import transposed

pytestmark = pytest.mark.skipif(not has_bf16(), reason="the processor has no products in bfloat16")
CELLS = {"LSTM": es.LSTM, "GRU": es.GRU, "GRUBefore": es.GRUBefore, "LayerNormLSTM": es.LayerNormLSTM}


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def near(got: Tensor, a: Tensor, b: Tensor, c: Tensor | float = 0.0) -> bool:
    """Whether `got` is a·b + c of rounded factors, but for the roundings of one sum."""
    want, size = rounded(a) @ rounded(b) + c, rounded(a).abs() @ rounded(b).abs() + abs(c)
    return bool(((got - want).abs() <= (a.shape[1] + 2) * 2**-23 * size).all())


def product(a: Tensor, w: Tensor, c: Tensor | None = None) -> Tensor:
    """a·w, added to c if there is one, by the kernel."""
    library = kernels(torch.float32, True)
    (m, k), n = a.shape, w.shape[1]
    memory = torch.full((library.packed_size(k, n) + 32,), torch.nan)
    place = -(-memory.data_ptr() // 64) * 64
    job = (ctypes.c_int64 * 6)(w.data_ptr(), k, n, *w.stride(), place)
    library.run(0, ctypes.addressof(job), 1, 0, 1)
    out = torch.full((m, n), torch.nan) if c is None else c.clone()
    pointer = ctypes.c_void_p
    numbers = [ctypes.c_int64(v) for v in (a.stride(0), m, k, n, 0, 1 << 20, n)]
    lda, m_, k_, n_, first, last, ldc = numbers
    library.library.es_gemm_bf16(
        pointer(a.data_ptr()), lda, m_, pointer(place), k_, n_, first, last, pointer(out.data_ptr()), ldc,
        ctypes.c_int(c is not None),
    )  # fmt: skip
    return out


@pytest.mark.sanitize
@pytest.mark.parametrize("k", [1, 2, 3, 16, 65, 2048, 2501, 4100])
def test_products(k: int) -> None:
    torch.manual_seed(k)
    for m, n in ((1, 1), (1, 130), (2, 64), (3, 33), (15, 70), (70, 31), (130, 40)):
        a, w, c = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
        got = product(a, w)
        assert near(got, a, w), (m, n)
        assert near(product(a, w, c), a, w, c), (m, n)
        assert torch.equal(product(a, w.t().contiguous().t()), got)
        assert torch.equal(product(a, torch.stack([w, w], 2)[..., 0]), got)
        assert torch.equal(product(a[m // 2 : m // 2 + 1], w)[0], got[m // 2])


@pytest.mark.sanitize
@pytest.mark.parametrize("steps", [1, 2, 255, 257, 600])
def test_products_over_steps(steps: int) -> None:
    torch.manual_seed(steps)
    for m, n in ((40, 40), (130, 3), (3, 200), (600, 50)):
        g, x = torch.randn(steps, m), torch.randn(steps, n)
        assert near(transposed(g, x, bf16=True), g.t(), x)


def test_not_a_number_and_infinity() -> None:
    a = torch.ones(3, 4)
    a[0, 1], a[1, 2], a[2, 0] = torch.nan, torch.inf, 3.4e38
    got = product(a, torch.ones(4, 20))
    assert got[0].isnan().all()
    assert (got[1] == torch.inf).all()
    assert (got[2] == torch.inf).all()  # it rounds up to infinity, as PyTorch has it
    assert a[2, 0].bfloat16() == torch.inf


def gradients(cell: es.Cell, xs: Tensor, mixed: bool, backend: str = "fused") -> list[Tensor]:
    xs = xs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        ys, _ = es.scan(cell, xs, backend=backend)
    scale = torch.linspace(-1, 1, ys.numel()).view_as(ys)
    return [ys.detach().float(), *torch.autograd.grad((ys.float() * scale).sum(), [xs, *cell.parameters()])]


@pytest.mark.sanitize
@pytest.mark.parametrize("name", CELLS)
def test_a_training_step(name: str) -> None:
    logs = []
    for seed in range(6):  # what one draw of roundings becomes behind a layer norm is chance
        torch.manual_seed(seed)
        cell, xs = CELLS[name](24, 40), torch.randn(5, 30, 24)
        exact, bf16 = gradients(cell, xs, False), gradients(cell, xs, True)
        errors = [
            [float((x - want).abs().mean() / want.abs().mean()) for x in (got, loop)]
            for want, got, loop in zip(exact, bf16, gradients(cell, xs, True, "reference"), strict=True)
        ]
        assert all(error > 1e-5 for error, _ in errors)
        logs.append([math.log(error / of_loop) for error, of_loop in errors])
    assert all(sum(of_one) / len(logs) < math.log(1.1) for of_one in zip(*logs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(bf16, gradients(cell, xs, True), strict=True))


def test_where_it_is_not_there_products_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cell, xs = es.GRU(8, 16), torch.zeros(2, 9, 8)  # nothing to round in the products of x
    exact, bf16 = gradients(cell, xs, False)[0], gradients(cell, xs, True)[0]
    monkeypatch.setattr(call, "has_bf16", lambda: False)
    without = gradients(cell, xs, True)[0]
    assert float((without - exact).abs().mean()) < float((bf16 - exact).abs().mean())


def test_padded_equals_alone() -> None:
    torch.manual_seed(0)
    cell, xs, lengths = es.GRU(8, 24), torch.randn(6, 11, 8), torch.tensor([11, 0, 3, 7, 11, 1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hoisted, _ = es.scan(cell, xs, lengths=lengths, backend="fused")
        for row, n in enumerate(lengths.tolist()):
            alone, _ = es.scan(cell, xs[row : row + 1, :n], backend="fused")
            torch.testing.assert_close(hoisted[row : row + 1, :n], alone, rtol=0, atol=0.02)
