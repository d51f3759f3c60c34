"""Variants of the LSTM, leaky, normalised, modern and skipping cells, each against its formula in plain torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn import functional as F

import everstep as es
from everstep.backends import parallel
from everstep.backends.dispatch import BACKENDS
from everstep.state import leaves, map_state
from everstep.wirings.masks import dropout, dropout_mask
from tests.laws import refused

F64 = torch.float64
D, H, B, T = 3, 4, 5, 7


def made(cell: es.Layer) -> es.Layer:
    """In double precision, with every parameter away from its start (where some are 0)."""
    cell = cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return cell


def inputs(size: int = D, time: int = T) -> Tensor:
    return torch.randn(B, time, size, dtype=F64)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


# -- the LSTM and its variants against the backward pass derived by hand


def logistic(value: Tensor) -> tuple[Tensor, Tensor]:
    """σ and its derivative."""
    return sigmoid(value), sigmoid(value) * (1 - sigmoid(value))


def hyperbolic(value: Tensor) -> tuple[Tensor, Tensor]:
    return tanh(value), 1 - tanh(value) ** 2


def sine(value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(value), torch.cos(value)


def softsign(value: Tensor) -> tuple[Tensor, Tensor]:
    return value / (1 + value.abs()), 1 / (1 + value.abs()) ** 2


USUAL = {"i": logistic, "f": logistic, "o": logistic, "g": hyperbolic, "c": hyperbolic}
CLOSED: dict[str, tuple[Callable[[], es.Cell], dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]]] = {
    "LSTM": (lambda: es.LSTM(D, H), USUAL),
    "NoForgetLSTM": (lambda: es.NoForgetLSTM(D, H), USUAL),
    "CoupledLSTM": (lambda: es.CoupledLSTM(D, H), USUAL),
    "LaggedLSTM": (lambda: es.LaggedLSTM(D, H), USUAL),
    "LaggedLSTM softsign": (lambda: es.LaggedLSTM(D, H, activation=F.softsign), {**USUAL, "g": softsign}),
    "ActivationLSTM": (
        lambda: es.ActivationLSTM(
            D, H, input_gate=torch.sin, forget_gate=F.softsign, output_gate=tanh, activation=sigmoid, squash=torch.sin
        ),
        {"i": sine, "f": softsign, "o": hyperbolic, "g": logistic, "c": sine},
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_gradients_equal_the_closed_form(name: str) -> None:
    """δ_o = δ_h φ_c(c) o', δ_c = δ_h o φ_c'(c) + δ_c⁺ f⁺, δ_f = δ_c c⁻ f', δ_i = δ_c g i', δ_g = δ_c i g'."""
    make, functions = CLOSED[name]
    cell = made(make())
    lagged, coupled, forgets = "Lagged" in name, "Coupled" in name, "NoForget" not in name
    xs, upstream = inputs().requires_grad_(), inputs(H)
    rows = {g: slice(k * H, (k + 1) * H) for k, g in enumerate(cell.input_gates)}
    W, U, b = cell.weight_ih, cell.weight_hh, cell.bias_ih + cell.bias_hh

    ys, _ = cell(xs)
    names = [n for n, _ in cell.named_parameters()]
    got = torch.autograd.grad((ys * upstream).sum(), [xs, *cell.parameters()])
    got = dict(zip(["xs", *names], got, strict=True))

    with torch.no_grad():
        h = c = torch.zeros(B, H, dtype=F64)
        one = torch.ones_like(h)
        tape = []
        for x in xs.unbind(1):
            before = h, c
            pre = x @ W.T + h @ U.T + b
            value = {g: functions[g](pre[:, r]) for g, r in rows.items()}
            f, df = value["f"] if forgets else (one, 0 * one)
            g, dg = value["g"]
            o, do = value["o"]
            i, di = (1 - f, -df) if coupled else value["i"]
            c = f * c + i * g
            read, dread = functions["c"](before[1] if lagged else c)
            h = o * read
            tape.append((x, before, f, df, g, dg, o, do, i, di, read, dread))
        same(ys[:, -1].detach(), h)

        want = {n: torch.zeros_like(v) for n, v in got.items()}
        dh_next = dc_next = torch.zeros(B, H, dtype=F64)
        for t in reversed(range(T)):
            x, (h_old, c_old), f, df, g, dg, o, do, i, di, read, dread = tape[t]
            dh = upstream[:, t] + dh_next
            dc = dc_next if lagged else dc_next + dh * o * dread
            delta = {"o": dh * read * do, "g": dc * i * dg}
            if coupled:
                delta["f"] = dc * (c_old * df + g * di)
            else:
                delta["i"] = dc * g * di
                if forgets:
                    delta["f"] = dc * c_old * df
            dc_next = dc * f + (dh * o * dread if lagged else 0)
            dh_next = torch.zeros_like(dh)
            for gate, value in delta.items():
                want["xs"][:, t] += value @ W[rows[gate]]
                dh_next = dh_next + value @ U[rows[gate]]
                want["weight_ih"][rows[gate]] += value.T @ x
                want["weight_hh"][rows[gate]] += value.T @ h_old
                want["bias_ih"][rows[gate]] += value.sum(0)
                want["bias_hh"][rows[gate]] += value.sum(0)
    for key, value in want.items():
        same(got[key], value)


def test_replaceable_activations_start_as_the_lstm() -> None:
    plain, open_ = es.LSTM(D, H).double(), es.ActivationLSTM(D, H).double()
    open_.load_state_dict(plain.state_dict())
    xs = inputs()
    same(open_(xs)[0], plain(xs)[0])
    assert "PReLU" in str(es.ActivationLSTM(D, H, squash=nn.PReLU()))
    always = made(es.ActivationLSTM(D, H, forget_gate=torch.ones_like))
    none = es.NoForgetLSTM(D, H).double()
    with torch.no_grad():
        for name, parameter in none.named_parameters():
            wide = always.get_parameter(name)
            parameter.copy_(torch.cat([wide[:H], wide[2 * H :]]))
    same(always(xs)[0], none(xs)[0])


# -- time scales


def test_leaky_units() -> None:
    xs, plain = inputs(), made(es.RNN(D, H))
    for alpha in (0.0, 0.3, [0.0, 0.2, 0.9, 1.0]):
        cell = es.LeakyRNN(D, H, alpha=alpha).double()
        cell.load_state_dict(plain.state_dict(), strict=False)
        share, h = torch.tensor(alpha, dtype=F64), torch.zeros(B, H, dtype=F64)
        for t in range(T):
            new = tanh(xs[:, t] @ plain.weight_ih.T + plain.bias_ih + h @ plain.weight_hh.T + plain.bias_hh)
            h = share.float().double() * h + (1 - share.float().double()) * new
            same(cell(xs)[0][:, t], h)
        if alpha == 0.0:
            same(cell(xs)[0], plain(xs)[0])
    learned, fixed = es.LeakyRNN(D, H, alpha=0.3, learned=True), es.LeakyRNN(D, H, alpha=0.3)
    fixed.load_state_dict({**learned.state_dict(), "alpha": fixed.alpha}, strict=False)
    torch.testing.assert_close(learned(xs.float())[0], fixed(xs.float())[0])
    assert learned.alpha_logit.shape == (H,)
    assert set(fixed.state_dict()) == {*plain.state_dict(), "alpha"}


def test_leaky_units_refuse_what_is_no_share() -> None:
    for alpha, learned in ((1.5, False), (-0.1, False), (0.0, True), ([0.5, 0.5], False)):
        with pytest.raises(ValueError, match="alpha should be one number"):
            es.LeakyRNN(D, H, alpha=alpha, learned=learned)
    with pytest.raises(ValueError, match="shortest"):
        es.time_scales(4, 10, 1)
    tau = -1 / es.time_scales(5, 1, 10_000).double().log()
    torch.testing.assert_close(tau, torch.tensor([1.0, 10, 100, 1000, 10_000], dtype=F64), rtol=1e-2, atol=0)


def test_clockwork_modules_run_at_their_periods() -> None:
    periods, width = (1, 2, 4), 2
    cell = made(es.ClockworkRNN(D, 6, periods=periods))
    xs = inputs(time=9)
    ys, (_, clock) = cell(xs)
    assert clock.tolist() == [9 % 4] * B
    modules = [torch.zeros(B, width, dtype=F64) for _ in periods]
    for t in range(9):
        fresh = []
        for k in range(3):
            mine = slice(k * width, (k + 1) * width)
            total = xs[:, t] @ cell.weight_ih[mine].T + cell.bias[mine]
            for j in range(k, 3):
                total = total + modules[j] @ cell.weight_hh[mine, j * width : (j + 1) * width].T
            fresh.append(tanh(total))
        modules = [fresh[k] if t % periods[k] == 0 else modules[k] for k in range(3)]
        same(ys[:, t], torch.cat(modules, 1))
    (grad,) = torch.autograd.grad(ys.sum(), cell.weight_hh)
    assert not grad[2:4, :2].any()
    assert not grad[4:, :4].any()
    assert grad[:2, 2:].all()


def test_a_clock_of_one_module_is_the_simple_network() -> None:
    cell, plain, xs = made(es.ClockworkRNN(D, H, periods=(1,))), es.RNN(D, H).double(), inputs()
    with torch.no_grad():
        plain.weight_ih.copy_(cell.weight_ih)
        plain.weight_hh.copy_(cell.weight_hh)
        plain.bias_ih.copy_(cell.bias)
        plain.bias_hh.zero_()
    same(cell(xs)[0], plain(xs)[0])
    assert es.ClockworkRNN(D, H, bias=False).bias is None
    for periods in ((), (2, 1), (1, 1), (1, 2, 4)):
        with pytest.raises(ValueError, match="periods should rise"):
            es.ClockworkRNN(D, H, periods=periods)


# -- starts


def test_starts_are_exact() -> None:
    cell = es.GRU(D, H)
    es.init_identity(cell, 0.5, gates=("n",))
    assert torch.equal(cell.weight_hh[2 * H :], 0.5 * torch.eye(H))
    assert not cell.bias_ih[2 * H :].any()
    assert not cell.bias_hh[2 * H :].any()
    assert cell.bias_ih[: 2 * H].all()
    assert not torch.equal(cell.weight_hh[:H], 0.5 * torch.eye(H))
    es.init_orthogonal(cell, gain=2.0)
    for block in cell.weight_hh.split(H):
        torch.testing.assert_close(block @ block.T, 4 * torch.eye(H))
    lstm = es.LSTM(D, H)
    es.init_bias(lstm, "f", 1.5)
    assert (lstm.bias_ih + lstm.bias_hh)[H : 2 * H].tolist() == [1.5] * H
    with pytest.raises(ValueError, match="feeds the gates"):
        es.init_identity(lstm, gates=("q",))
    with pytest.raises(ValueError, match="no bias for gate 'f'"):
        es.init_bias(es.LSTM(D, H, bias=False), "f", 1.0)


def test_chrono_spreads_time_constants() -> None:
    cell = es.LSTM(D, 4000)
    es.init_chrono(cell, longest=101)
    i, f = (cell.bias_ih + cell.bias_hh)[:8000].split(4000)
    assert torch.equal(i, -f)
    u = f.exp()
    assert 1 <= u.min() < 1.2
    assert 99 < u.max() <= 100.001
    assert abs(u.mean() - 50.5) < 2
    with pytest.raises(ValueError, match="above 2"):
        es.init_chrono(cell, longest=2)


def test_irnn_starts_by_adding_up() -> None:
    cell = es.IRNN(D, H)
    assert torch.equal(cell.weight_hh, torch.eye(H))
    assert refused(BACKENDS["vendor"], cell, torch.zeros(1, 2, D), None, None) is None
    ys, _ = cell(torch.ones(1, 5, D))
    torch.testing.assert_close(ys[0, -1], 5 * torch.relu(cell.weight_ih.sum(1)))
    assert torch.equal(es.IRNN(D, H, scale=0.01, bias=False).weight_hh, 0.01 * torch.eye(H))


# -- normalised


def normal(a: Tensor, module: nn.LayerNorm) -> Tensor:
    apart = a - a.mean(1, keepdim=True)
    return module.weight * apart / (apart.square().mean(1, keepdim=True) + 1e-5).sqrt() + module.bias


@pytest.mark.parametrize("kind", [es.LayerNormRNN, es.LayerNormGRU, es.LayerNormLSTM])
def test_layer_norm(kind: type[es.Cell]) -> None:
    cell, xs = made(kind(D, H)), inputs()
    h = c = torch.zeros(B, H, dtype=F64)
    ys, _ = cell(xs)
    for t in range(T):
        wx, uh = xs[:, t] @ cell.weight_ih.T, h @ cell.weight_hh.T
        if kind is es.LayerNormRNN:
            h = tanh(normal(wx + uh, cell.norm))
        elif kind is es.LayerNormLSTM:
            i, f, g, o = (normal(wx, cell.norm_x) + normal(uh, cell.norm_h)).chunk(4, 1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(normal(c, cell.norm_c))
        else:
            r, z = (normal(wx[:, : 2 * H], cell.norm_x) + normal(uh[:, : 2 * H], cell.norm_h)).chunk(2, 1)
            n = tanh(normal(wx[:, 2 * H :], cell.norm_nx) + sigmoid(r) * normal(uh[:, 2 * H :], cell.norm_nh))
            h = (1 - sigmoid(z)) * h + sigmoid(z) * n
        same(ys[:, t], h)
    scaled = kind(D, H).double()
    other = kind(D, H).double()
    other.load_state_dict({**scaled.state_dict(), "weight_ih": 50 * scaled.weight_ih})
    if kind is not es.LayerNormRNN:  # whose sum, and not each product, is normalised
        torch.testing.assert_close(other(xs)[0], scaled(xs)[0], rtol=0, atol=1e-2)


def batch_normal(a: Tensor) -> Tensor:
    return (a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt()


def test_batch_norm_in_training_takes_the_statistics_of_the_valid_rows() -> None:
    cell, xs = made(es.BatchNormLSTM(D, H, steps=T, momentum=1.0)), inputs()
    lengths = torch.tensor([7, 2, 5, 7, 0])
    ys, state = cell(xs, lengths=lengths)
    h = c = torch.zeros(B, H, dtype=F64)
    for t in range(T):
        live = t < lengths
        wx, uh = xs[live, t] @ cell.weight_ih.T, h[live] @ cell.weight_hh.T
        same(cell.running_mean[t, : 4 * H], wx.mean(0))
        same(cell.running_var[t, 4 * H : 8 * H], uh.var(0, correction=0))
        gates = cell.gain_x * batch_normal(wx) + cell.gain_h * batch_normal(uh) + cell.bias
        i, f, g, o = gates.chunk(4, 1)
        new = sigmoid(f) * c[live] + sigmoid(i) * tanh(g)
        same(cell.running_mean[t, 8 * H :], new.mean(0))
        out = sigmoid(o) * tanh(cell.gain_c * batch_normal(new) + cell.bias_c)
        same(ys[live, t], out)
        assert not ys[~live, t].any()
        h, c = h.clone(), c.clone()
        h[live], c[live] = out, new
    same(state.h, h)
    assert state.t.tolist() == lengths.tolist()
    # the running statistics are now those of this very batch
    same(cell.eval()(xs, lengths=lengths)[0], ys)


def test_batch_norm_keeps_running_statistics_by_step() -> None:
    cell, xs = made(es.BatchNormLSTM(D, H, steps=3, momentum=0.25)), inputs()
    cell(xs[:, :2])
    wx = xs[:, :2] @ cell.weight_ih.T
    same(cell.running_mean[:2, : 4 * H], 0.25 * wx.mean(0))
    same(cell.running_var[:2, : 4 * H], 0.75 + 0.25 * wx.var(0, correction=0))
    assert not cell.running_mean[2].any()
    whole = cell.eval()(xs)[0]
    first, state = cell(xs[:, :4])
    same(torch.cat([first, cell(xs[:, 4:], state)[0]], 1), whole)


def test_batch_norm_tells_apart_rows_at_different_steps() -> None:
    xs = inputs()
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[:2, 3] = True
    cell = made(es.BatchNormLSTM(D, H))
    ys, _ = cell(xs, resets=resets)
    # from the reset on, two rows are a batch of their own at step 0, and the others one at step 3
    same(ys[:2, 3:], cell(xs[:2, 3:])[0])
    same(ys[:, :3], cell(xs[:, :3])[0])
    carried = cell(xs[:, :3])[1]
    same(ys[2:, 3:], cell(xs[2:, 3:], map_state(lambda leaf: leaf[2:], carried))[0])


def test_batch_norm_refuses_a_single_step_and_other_backends_in_training() -> None:
    cell = es.BatchNormLSTM(D, H)
    with pytest.raises(RuntimeError, match="no batch of sequences"):
        cell.step(torch.zeros(B, D), cell.initial_state(B, torch.zeros(1)))
    with pytest.raises(ValueError, match="normalises over rows"):
        cell(torch.zeros(B, T, D), backend="parallel")


def test_batch_norm_gradients_in_training() -> None:
    cell, xs = made(es.BatchNormLSTM(D, 2)), inputs(time=3).requires_grad_()
    lengths = torch.tensor([3, 3, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda x: cell(x, lengths=lengths)[0], (xs,), fast_mode=True)


# -- dropout within


def test_recurrent_dropout_masks_the_candidate() -> None:
    for once in (False, True):
        cell, xs = made(es.RecurrentDropout(es.ActivationLSTM(D, H), 0.5, once=once)), inputs()
        inner = cell.cell
        torch.manual_seed(12)
        ys, _ = cell(xs)
        torch.manual_seed(12)
        masks = dropout_mask(xs, (B, 1 if once else T, H), 0.5).expand(-1, T, -1)
        h = c = torch.zeros(B, H, dtype=F64)
        for t in range(T):
            pre = xs[:, t] @ inner.weight_ih.T + inner.bias_ih + h @ inner.weight_hh.T + inner.bias_hh
            i, f, g, o = pre.chunk(4, 1)
            c = sigmoid(f) * c + sigmoid(i) * masks[:, t] * tanh(g)
            h = sigmoid(o) * tanh(c)
            same(ys[:, t], h)
        never = masks.sum(1) == 0
        assert never.any() == once
        assert not ys[never[:, None].expand_as(ys)].any()
        same(cell.eval()(xs)[0], inner(xs)[0])


def test_recurrent_dropout_works_for_any_candidate_and_refuses_other_cells() -> None:
    xs = inputs()
    for inner in (es.GRU(D, H), es.GRUBefore(D, H), es.RNN(D, H), es.CoupledLSTM(D, H), es.NoForgetLSTM(D, H)):
        cell = es.RecurrentDropout(inner.double(), 0.3)
        first, second = cell(xs)[0], cell(xs, lengths=torch.full((B,), T))[0]
        assert not torch.equal(first, second)
        assert torch.isfinite(first).all()
        assert torch.equal(es.RecurrentDropout(inner, 0.0)(xs)[0], inner(xs)[0])
    for wrong in (es.LSTM(D, H), es.MinGRU(D, H), es.LeakyRNN(D, H)):
        with pytest.raises(TypeError, match="the option `activation`"):
            es.RecurrentDropout(wrong, 0.3)
    with pytest.raises(RuntimeError, match="mask"):
        cell.step(xs[:, 0], cell.initial_state(B, xs))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        es.RecurrentDropout(es.GRU(D, H), 1.0)


def test_weight_drop_masks_the_recurrent_matrix_once_a_sequence() -> None:
    inner, plain, xs = made(es.LSTM(D, H)), es.LSTM(D, H).double(), inputs()
    cell = es.WeightDrop(inner, 0.5)
    assert cell.state_dict().keys() == plain.state_dict().keys()
    kept = inner.weight_hh.detach().clone()
    torch.manual_seed(11)
    ys, _ = cell(xs)
    torch.manual_seed(11)
    dropped = dropout(inner.weight_hh.detach(), 0.5)
    plain.load_state_dict({**inner.state_dict(), "weight_hh": dropped})
    same(ys, plain(xs)[0])
    (grad,) = torch.autograd.grad(ys.sum(), inner.weight_hh)
    assert torch.equal(grad != 0, dropped != 0)
    assert torch.equal(inner.weight_hh, kept)
    assert not torch.equal(cell(xs)[0], ys)
    same(cell.eval()(xs)[0], inner(xs)[0])
    same(cell.step(xs[:, 0], cell.initial_state(B, xs))[0], inner(xs[:, :1])[0][:, 0])
    assert refused(BACKENDS["vendor"], cell.cell, xs, None, None) is None


def test_weight_drop_of_other_cells_and_its_refusals() -> None:
    xs, start = inputs(), torch.zeros(B, H, dtype=F64)
    lengths, resets = torch.tensor([7, 3, 0, 1, 5]), torch.rand(B, T) < 0.3
    cell = es.WeightDrop(made(es.ClockworkRNN(D, H)), 0.5, ["weight_hh", "weight_ih"])
    assert torch.isfinite(cell(xs, lengths=lengths, resets=resets)[0]).all()
    with pytest.raises(RuntimeError, match="mask"):
        cell.step(xs[:, 0], (start, start[:, 0]))
    with pytest.raises(ValueError, match="has no parameter 'weight_hh'"):
        es.WeightDrop(es.MinGRU(D, H), 0.5)


def test_weight_drop_has_the_state_dict_of_its_cell() -> None:
    plain, cell, xs = made(es.LSTM(D, H)), es.WeightDrop(es.LSTM(D, H), 0.5).double(), inputs()
    assert [name for name, _ in cell.named_parameters()] == [name for name, _ in plain.named_parameters()]
    cell.load_state_dict(plain.state_dict())
    same(cell.eval()(xs)[0], plain(xs)[0])
    other = copy.deepcopy(cell).train()
    assert (other.cell.training, cell.cell.training) == (True, False)
    other.load_state_dict({name: 0 * tensor for name, tensor in plain.state_dict().items()})
    same(cell(xs)[0], plain(xs)[0])
    assert not other(xs)[0].any()


# -- modern recurrences


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


# -- skips


def test_a_skip_of_one_step_is_the_cell_itself() -> None:
    inner, xs = made(es.LSTM(D, H)), inputs()
    ys, (state,) = es.TimeSkip(inner, 1)(xs)
    want, end = inner(xs)
    same(ys, want)
    same(state.c, end.c)


def test_a_skip_instead_makes_interleaved_sequences() -> None:
    inner, xs = made(es.LSTM(D, H)), inputs(time=11)
    ys, ring = es.TimeSkip(inner, 3)(xs)
    for phase in range(3):
        want, end = inner(xs[:, phase::3])
        same(ys[:, phase::3], want)
        same(ring[(phase - 11) % 3].h, end.h)


def test_a_skip_beside_sees_the_older_output() -> None:
    inner, xs = made(es.RNN(D + H, H)), inputs()
    ys, _ = es.TimeSkip(inner, 2, beside=True)(xs)
    past = [torch.zeros(B, H, dtype=F64)] * 2
    for t in range(T):
        wide = torch.cat([xs[:, t], past[-2]], 1)
        past.append(tanh(wide @ inner.weight_ih.T + inner.bias_ih + past[-1] @ inner.weight_hh.T + inner.bias_hh))
        same(ys[:, t], past[-1])
    with pytest.raises(ValueError, match=r"takes \[x; y\]"):
        es.TimeSkip(es.RNN(D, H), 2, beside=True)
    with pytest.raises(ValueError, match="d should be"):
        es.TimeSkip(es.RNN(D, H), 0)


def test_gradients_take_fewer_steps_through_a_skip() -> None:
    """A linear chain that halves its state: after 8 steps, 1/2⁸ is left, and 1/2² with d = 4."""
    half = es.LeakyRNN(1, 1, alpha=0.5, activation=torch.zeros_like)
    for cell, left in ((half, 2**-9), (es.TimeSkip(half, 4), 2**-3)):
        start = tuple(torch.ones(1, 1, requires_grad=True) for _ in range(4)) if cell is not half else None
        state = torch.ones(1, 1, requires_grad=True) if start is None else start
        ys, _ = cell(torch.zeros(1, 9, 1), state)
        (grad,) = torch.autograd.grad(ys[0, -1], state if start is None else start[0])
        assert grad.item() == left


def test_a_window_of_one_step_changes_nothing() -> None:
    xs = inputs()
    ys, state = es.Window(D, 1)(xs)
    assert torch.equal(ys, xs)
    assert state == ()
    wide, (old, new) = es.Window(D, 3)(xs)
    assert torch.equal(wide[:, 4], torch.cat([xs[:, 2], xs[:, 3], xs[:, 4]], 1))
    assert torch.equal(torch.stack([old, new], 1), xs[:, -2:])
