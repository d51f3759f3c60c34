"""Variants of the LSTM, leaky, normalised, modern and skipping cells, each against its formula in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn import functional as F

import everstep as es
from everstep.backends.dispatch import BACKENDS
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


Record = tuple[Tensor, ...]


def forward_by_hand(name: str, cell: Any, xs: Tensor) -> tuple[Tensor, list[Record]]:
    """The last output, and of each step its input, the state before it, and each gate with its derivative."""
    functions, (W, U, b) = CLOSED[name][1], weights(cell)
    h = c = torch.zeros(B, H, dtype=F64)
    one, tape = torch.ones_like(h), []
    for x in xs.unbind(1):
        h_old, c_old = h, c
        pre = x @ W.T + h @ U.T + b
        value = {g: functions[g](pre[:, r]) for g, r in rows_of_gates(cell).items()}
        f, df = (one, 0 * one) if "NoForget" in name else value["f"]
        g, dg = value["g"]
        o, do = value["o"]
        i, di = (1 - f, -df) if "Coupled" in name else value["i"]
        c = f * c + i * g
        read, dread = functions["c"](c_old if "Lagged" in name else c)
        h = o * read
        tape.append((x, h_old, c_old, f, df, g, dg, o, do, i, di, read, dread))
    return h, tape


def backward_by_hand(name: str, cell: Any, tape: list[Record], upstream: Tensor) -> dict[str, Tensor]:
    """δ_o = δ_h φ_c(c) o', δ_c = δ_h o φ_c'(c) + δ_c⁺ f⁺, δ_f = δ_c c⁻ f', δ_i = δ_c g i', δ_g = δ_c i g'."""
    (W, U, _), rows, lagged = weights(cell), rows_of_gates(cell), "Lagged" in name
    want = {"xs": torch.zeros(B, T, W.shape[1], dtype=F64)}
    want |= {n: torch.zeros_like(v) for n, v in cell.named_parameters()}
    dh_next = dc_next = torch.zeros(B, H, dtype=F64)
    for t in reversed(range(T)):
        x, h_old, c_old, f, df, g, dg, o, do, i, di, read, dread = tape[t]
        dh = upstream[:, t] + dh_next
        dc = dc_next if lagged else dc_next + dh * o * dread
        delta = {"o": dh * read * do, "g": dc * i * dg}
        if "Coupled" in name:
            delta["f"] = dc * (c_old * df + g * di)
        else:
            delta["i"] = dc * g * di
            if "NoForget" not in name:
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
    return want


def weights(cell: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih + cell.bias_hh


def rows_of_gates(cell: Any) -> dict[str, slice]:
    return {g: slice(k * H, (k + 1) * H) for k, g in enumerate(cell.input_gates)}


@pytest.mark.parametrize("name", CLOSED)
def test_gradients_equal_the_closed_form(name: str) -> None:
    cell = made(CLOSED[name][0]())
    xs, upstream = inputs().requires_grad_(), inputs(H)
    ys, _ = cell(xs)
    names = ["xs", *(n for n, _ in cell.named_parameters())]
    got = torch.autograd.grad((ys * upstream).sum(), [xs, *cell.parameters()])
    with torch.no_grad():
        last, tape = forward_by_hand(name, cell, xs)
        want = backward_by_hand(name, cell, tape, upstream)
    same(ys[:, -1].detach(), last)
    for key, value in zip(names, got, strict=True):
        same(value, want[key])


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
