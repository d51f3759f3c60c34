"""MinLSTM, QRNN, SRU, RG-LRU and the xLSTM's cells against their equations."""

from __future__ import annotations

import math

import pytest
import torch
from test_catalogue_variants import F64, B, D, H, T, inputs, made, same
from torch import Tensor, sigmoid, tanh
from torch.nn import functional as F

import everstep as es
from everstep.backends import parallel
from everstep.state import leaves
from tests.laws import refused


def blocks(x: Tensor, cell: es.Cell) -> list[Tensor]:
    return list((x @ cell.weight_ih.T + cell.bias_ih).split(H, 1))


def test_min_lstm() -> None:
    cell, xs = made(es.MinLSTM(D, H)), inputs()
    ys, _ = cell(xs)
    h = torch.zeros(B, H, dtype=F64)
    for t in range(T):
        f, i, n = blocks(xs[:, t], cell)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * n
        same(ys[:, t], h, 1e-8)
    with torch.no_grad():
        cell.float().bias_ih[: 2 * H] = -300.0
    assert torch.isfinite(cell(xs.float())[0]).all()


def test_qrnn_and_its_window() -> None:
    cell, xs = made(es.QRNN(2 * D, H)), inputs()
    ys, _ = es.Stack(es.Window(D, 2), cell)(xs)
    # the paper's masked convolution: W¹ x_{t-1} + W² x_t
    kernel = cell.weight_ih.view(3 * H, 2, D).permute(0, 2, 1)
    wide = F.conv1d(F.pad(xs.transpose(1, 2), (1, 0)), kernel, cell.bias_ih).transpose(1, 2)
    c = torch.zeros(B, H, dtype=F64)
    for t in range(T):
        z, f, o = wide[:, t].chunk(3, 1)
        c = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(z)
        same(ys[:, t], sigmoid(o) * c)


def test_qrnn_takes_the_authors_weights_with_another_sign() -> None:
    """salesforce/pytorch-qrnn, torchqrnn/qrnn.py: f is what is written there, and 1 − f what is kept."""
    cell, xs = made(es.QRNN(D, H)), inputs()
    sign = torch.ones(3 * H, dtype=F64)
    sign[H : 2 * H] = -1
    theirs = F.linear(xs, sign[:, None] * cell.weight_ih, sign * cell.bias_ih)
    c = torch.zeros(B, H, dtype=F64)
    for t, y in enumerate(cell(xs)[0].unbind(1)):
        z, f, o = theirs[:, t].chunk(3, 1)
        c = sigmoid(f) * tanh(z) + (1 - sigmoid(f)) * c
        same(y, sigmoid(o) * c)


@pytest.mark.parametrize("size", [D, H])
@pytest.mark.parametrize("kind", [es.SRU, es.AffineSRU])
def test_sru(kind: type[es.Cell], size: int) -> None:
    cell, xs = made(kind(size, H, highway_bias=-2.0)), inputs(size)
    ys, _ = cell(xs)
    c = torch.zeros(B, H, dtype=F64)
    v_f, v_r = cell.weight_c.split(H) if kind is es.SRU else (0, 0)
    b_f, b_r = cell.bias_ih.split(H)
    alpha = math.sqrt(1 + 2 * math.exp(-2.0))
    for t in range(T):
        x = xs[:, t]
        W, W_f, W_r, *W_s = cell.weight_ih.split(H)
        f = sigmoid(x @ W_f.T + v_f * c + b_f)
        r = sigmoid(x @ W_r.T + v_r * c + b_r)
        c = f * c + (1 - f) * (x @ W.T)
        same(ys[:, t], r * c + (1 - r) * alpha * (x @ W_s[0].T if W_s else x))
    assert (refused(parallel, cell, xs, None, None) is None) == (kind is es.AffineSRU)


def test_rg_lru() -> None:
    cell, xs = made(es.RGLRU(H)), inputs(H)
    ys, _ = cell(xs)
    h = torch.zeros(B, H, dtype=F64)
    for t in range(T):
        r, i = sigmoid(torch.cat(blocks(xs[:, t], cell), 1)).chunk(2, 1)
        a = sigmoid(cell.decay) ** (8 * r)
        h = a * h + (1 - a**2).sqrt() * (i * xs[:, t])
        same(ys[:, t], h)
    start = sigmoid(es.RGLRU(5000).decay.detach().double()) ** 8
    assert start.min() > 0.8999
    assert start.max() < 0.9991
    assert abs(start.mean() - 0.9495) < 0.002


@pytest.mark.parametrize("cell", [es.QRNN(D, H), es.AffineSRU(D, H), es.MinLSTM(D, H), es.RGLRU(D)])
def test_affine_cells_with_outputs_of_their_own_run_in_parallel(cell: es.Cell) -> None:
    cell, xs = cell.double(), inputs(time=33)
    how = {"lengths": torch.tensor([33, 0, 9, 20, 1]), "resets": torch.rand(B, 33) < 0.1}
    assert refused(parallel, cell, xs, None, None) is None
    ys, h = cell(xs, backend="parallel", **how)
    want, end = cell(xs, backend="reference", **how)
    same(ys, want)
    same(h, end)


def forget_of(cell: es.Cell, value: Tensor) -> Tensor:
    return torch.exp(value) if cell.forget == "exp" else sigmoid(value)


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
@pytest.mark.parametrize("heads", [1, 2])
def test_slstm_equals_the_formula_without_a_stabiliser(heads: int, forget: str) -> None:
    cell, xs = made(es.SLSTM(D, H, heads=heads, forget=forget)), inputs()
    ys, state = cell(xs)
    h = c = n = torch.zeros(B, H, dtype=F64)
    R = [torch.block_diag(*(cell.weight_hh[k].chunk(4)[gate] for k in range(heads))) for gate in range(4)]
    for t in range(T):
        pre = (xs[:, t] @ cell.weight_ih.T + cell.bias).chunk(4, 1)
        z, i, f, o = (p + h @ r.T for p, r in zip(pre, R, strict=True))
        c = forget_of(cell, f) * c + torch.exp(i) * tanh(z)
        n = forget_of(cell, f) * n + torch.exp(i)
        h = sigmoid(o) * c / n
        same(ys[:, t], h, 1e-8)
    same(state.c * state.m.exp() / c, torch.ones_like(c), 1e-7)
    same(state.n * state.m.exp() / n, torch.ones_like(n), 1e-7)


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
@pytest.mark.parametrize("heads", [1, 2])
def test_mlstm_equals_the_formula_without_a_stabiliser(heads: int, forget: str) -> None:
    cell, xs = made(es.MLSTM(D, H, heads=heads, forget=forget)), 2 * inputs()
    ys, _ = cell(xs)
    d = H // heads
    W = cell.weight_ih.split([H] * 4 + [heads] * 2)
    b = cell.bias.split([H] * 4 + [heads] * 2)
    for row in range(B):
        C = [torch.zeros(d, d, dtype=F64) for _ in range(heads)]
        n = [torch.zeros(d, dtype=F64) for _ in range(heads)]
        for t in range(T):
            q, k, v, o, i, f = (w @ xs[row, t] for w in W)
            q, k, v, o = q + b[0], k / math.sqrt(d) + b[1], v + b[2], sigmoid(o + b[3])
            i, f = torch.exp(i + b[4]), forget_of(cell, f + b[5])
            for head in range(heads):
                mine = slice(head * d, (head + 1) * d)
                C[head] = f[head] * C[head] + i[head] * torch.outer(v[mine], k[mine])
                n[head] = f[head] * n[head] + i[head] * k[mine]
                read = C[head] @ q[mine] / (n[head] @ q[mine]).abs().clamp(min=1)
                same(ys[row, t, mine], o[mine] * read, 1e-8)


@pytest.mark.parametrize("kind", [es.SLSTM, es.MLSTM])
@pytest.mark.parametrize("scale", [-1e3, 1e3])
def test_xlstm_stays_finite_where_the_exponentials_would_not(kind: type[es.Cell], scale: float) -> None:
    for forget in ("sigmoid", "exp"):
        cell = kind(D, H, heads=2, forget=forget)
        with torch.no_grad():
            cell.bias.fill_(scale)
        xs = torch.randn(B, 50, D, requires_grad=True)
        ys, state = cell(xs)
        grads = torch.autograd.grad(ys.sum(), [xs, *cell.parameters()])
        assert all(torch.isfinite(part).all() for part in (ys, *grads, *(leaf for _, leaf in leaves(state))))
    with pytest.raises(ValueError, match="heads should divide"):
        kind(D, H, heads=3)
    with pytest.raises(ValueError, match="forget should be"):
        kind(D, H, forget="tanh")
