"""Pascanu's Ω against its definition by finite differences, for every kind of state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch
from laws import UserCell
from torch import Tensor, nn

import everstep as es
from everstep.learn import Loss
from everstep.learn.omega import omega
from everstep.state import leaves, unflatten

B, T, D, H = 3, 5, 3, 4
F64 = torch.float64
CELLS: dict[str, Any] = {
    "RNN": lambda: es.RNN(D, H),
    "LSTM": lambda: es.LSTM(D, H),
    "GRU": lambda: es.GRU(D, H),
    "MinGRU": lambda: es.MinGRU(D, H),
    "UserCell": UserCell,
    "SLSTM": lambda: es.SLSTM(D, H),
    "Stack": lambda: es.Stack(es.GRU(D, 2), es.Identity(2), es.LSTM(2, H)),
    "Residual": lambda: es.Residual(es.GRU(D, D)),
    "TimeSkip": lambda: es.TimeSkip(es.RNN(D, H), 2),
}


def made(make: Any) -> es.Cell:
    torch.manual_seed(5)
    return make().double().eval()


def flat(state: Any) -> Tensor:
    """(rows, entries)"""
    return torch.cat([leaf.reshape(len(leaf), -1) for _, leaf in leaves(state)], 1)


def nest(vector: Tensor, like: Any) -> Any:
    parts = vector.split([leaf[0].numel() for _, leaf in leaves(like)], 1)
    return unflatten(like, [part.reshape(leaf.shape) for part, (_, leaf) in zip(parts, leaves(like), strict=True)])


def square(ys: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, ys.shape[1], dtype=ys.dtype)[:, None]
    return (weights * (ys - 0.3) ** 2).sum((1, 2))


@torch.no_grad()
def by_differences(cell: es.Cell, xs: Tensor, eps: float = 1e-5) -> Tensor:
    """Ω of one row of xs (1, T, D), every derivative a central difference of plain runs."""
    states, state, ys = [cell.initial_state(1, xs)], None, []
    for t in range(xs.shape[1]):
        y, state = cell.step(xs[:, t], states[-1])
        states.append(state)
        ys.append(y)

    def error(after: Any, t: int, y: Tensor) -> Tensor:
        """E when the state after step t is `after`, and the output of step t is `y`."""
        outputs = [*ys[:t], y]
        for k in range(t + 1, xs.shape[1]):
            y, after = cell.step(xs[:, k], after)
            outputs.append(y)
        return square(torch.stack(outputs, 1))[0]

    def output(vector: Tensor, t: int) -> Tensor:
        """The output of step t as far as it is a leaf of the new state; else what it was."""
        place = 0
        for _, leaf in leaves(states[t + 1]):
            size = leaf[0].numel()
            if leaf is ys[t]:
                return vector[:, place : place + size].reshape(ys[t].shape)
            place += size
        return ys[t]

    total = torch.zeros((), dtype=F64)
    for t in range(xs.shape[1]):
        here, there = flat(states[t]), flat(states[t + 1])
        signal = torch.empty_like(there[0])
        for i in range(there.shape[1]):
            step = torch.zeros_like(there)
            step[0, i] = eps
            up, down = there + step, there - step
            parts = [error(nest(v, states[t + 1]), t, output(v, t)) for v in (up, down)]
            signal[i] = (parts[0] - parts[1]) / (2 * eps)
        jacobian = torch.empty(there.shape[1], here.shape[1], dtype=F64)
        for j in range(here.shape[1]):
            step = torch.zeros_like(here)
            step[0, j] = eps
            ends = [flat(cell.step(xs[:, t], nest(v, states[t]))[1]) for v in (here + step, here - step)]
            jacobian[:, j] = (ends[0] - ends[1])[0] / (2 * eps)
        if signal.norm() > 1e-9:
            total += ((signal @ jacobian).norm() / signal.norm() - 1) ** 2
    return total


@pytest.mark.parametrize("name", CELLS)
def test_value_equals_finite_differences(name: str) -> None:
    cell, xs = made(CELLS[name]), torch.randn(B, T, D, dtype=F64)
    error, penalty, final = omega(cell, xs, square)
    ys, state = cell(xs)
    torch.testing.assert_close(error, square(ys))
    torch.testing.assert_close(flat(final), flat(state))
    expected = torch.stack([by_differences(cell, row[None]) for row in xs])
    torch.testing.assert_close(penalty, expected, rtol=0, atol=1e-6)
    assert float(penalty.detach().min()) > 1e-3


@pytest.mark.parametrize("name", CELLS)
def test_whole_gradient_equals_finite_differences(name: str) -> None:
    cell, xs = made(CELLS[name]), torch.randn(B, T, D, dtype=F64)
    omega(cell, xs, square)[1].sum().backward()
    gradients = [p.grad.clone() for p in cell.parameters() if p.grad is not None]
    assert gradients
    for parameter in cell.parameters():
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
                values.append(float(omega(cell, xs, square)[1].sum()))
                parameter -= sign * 1e-5 * direction
        found = 0.0 if parameter.grad is None else float((parameter.grad * direction).sum())
        assert found == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-6)


def test_immediate_gradient_holds_states_and_signals_still() -> None:
    """For h_t = tanh(W x_t + U h_{t-1}) the handed-back signal is Uᵀ(g ∘ (1 − h²)), with g and h_{t-1} constants."""
    cell, xs = made(lambda: es.RNN(D, H, bias=False)), torch.randn(1, T, D, dtype=F64)
    _, penalty, _ = omega(cell, xs, square, immediate=True)
    (found,) = torch.autograd.grad(penalty.sum(), cell.weight_hh)
    with torch.no_grad():
        torch.testing.assert_close(penalty, omega(cell, xs, square)[1])
    hs, h = [], torch.zeros(1, H, dtype=F64)
    for x in xs.unbind(1):
        h, _ = cell.step(x, h)
        hs.append(h)
    signals = torch.autograd.grad(square(torch.stack(hs, 1)).sum(), hs)
    before = [torch.zeros_like(h), *[h.detach() for h in hs[:-1]]]
    matrix = cell.weight_hh.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=F64)
    for x, past, g in zip(xs.unbind(1), before, signals, strict=True):
        h = torch.tanh(x @ cell.weight_ih.detach().T + past @ matrix.T)
        total = total + (((g * (1 - h**2)) @ matrix).norm() / g.norm() - 1) ** 2
    torch.testing.assert_close(total, penalty.sum().detach())
    torch.testing.assert_close(found, torch.autograd.grad(total, matrix)[0])
    whole = torch.autograd.grad(omega(cell, xs, square)[1].sum(), cell.weight_hh)[0]
    assert not torch.allclose(found, whole, rtol=1e-3)


@pytest.mark.parametrize("name", ["RNN", "UserCell", "Stack"])
@pytest.mark.parametrize("immediate", [False, True])
def test_padded_equals_alone(name: str, immediate: bool) -> None:
    cell, xs, lengths = made(CELLS[name]), torch.randn(B, T, D, dtype=F64), torch.tensor([5, 2, 0])
    xs[1, 2:] = xs[2] = torch.nan
    error, penalty, final = omega(cell, xs, square_live(lengths), lengths=lengths, immediate=immediate)
    gradient = torch.autograd.grad(penalty.sum(), list(cell.parameters()), allow_unused=True, materialize_grads=True)
    assert penalty[2] == 0
    expected = [torch.zeros_like(g) for g in gradient]
    for row, length in enumerate([5, 2]):
        alone = omega(cell, xs[row : row + 1, :length], square_live(None), immediate=immediate)
        torch.testing.assert_close(error[row], alone[0][0])
        torch.testing.assert_close(penalty[row], alone[1][0])
        torch.testing.assert_close(flat(final)[row], flat(alone[2])[0])
        parts = torch.autograd.grad(alone[1].sum(), list(cell.parameters()), allow_unused=True, materialize_grads=True)
        expected = [a + b for a, b in zip(expected, parts, strict=True)]
    for found, wanted in zip(gradient, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def square_live(lengths: Tensor | None) -> Any:
    """A sum of squares over valid steps."""

    def loss(ys: Tensor) -> Tensor:
        squares = ((ys - 0.3) ** 2).sum(2)
        return squares.sum(1) if lengths is None else (squares * (torch.arange(T) < lengths[:, None])).sum(1)

    return loss


def test_a_reset_parts_a_row_in_two() -> None:
    cell, xs = made(CELLS["LSTM"]), torch.randn(1, T, D, dtype=F64)
    resets = torch.zeros(1, T, dtype=torch.bool)
    resets[0, 2] = True
    _, penalty, final = omega(cell, xs, square_live(None), resets=resets)
    torch.testing.assert_close(flat(final), flat(cell(xs, resets=resets)[1]))
    first = omega(cell, xs[:, :2], square_live(None))[1]
    # the second part without its first step, before which the state came from nowhere
    start = cell(xs[:, 2:3])[1]
    second = omega(cell, xs[:, 3:], square_live(None), start)[1]
    torch.testing.assert_close(penalty, first + second)


def test_what_hands_everything_back_as_it_is_costs_nothing() -> None:
    accumulator, xs = es.Accumulator(D), torch.randn(B, T, D)
    assert torch.equal(omega(accumulator, xs, square)[1], torch.zeros(B))
    assert torch.equal(omega(es.Identity(D), xs, square)[1], torch.zeros(B))  # no state at all
    half = es.RNN(D, H, activation=nn.Identity())
    es.init_identity(half, 0.5)
    # the last output only: each of the T steps hands back a half
    torch.testing.assert_close(omega(half, xs, lambda ys: ys[:, -1].sum(1))[1], torch.full((B,), T * 0.25))
    with torch.no_grad():
        assert not omega(half, xs, square)[1].requires_grad


def test_refusals() -> None:
    xs = torch.randn(B, T, D)
    with pytest.raises(ValueError, match=r"omega: loss should give \(3,\), one number a row, but gave \(\)"):
        omega(es.RNN(D, H), xs, lambda ys: ys.sum())
    with pytest.raises(RuntimeError, match="VariationalDropout: a single step"):
        omega(es.VariationalDropout(es.RNN(D, H), 0.5), xs, square)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(toy.VOCABULARY, 6)
        self.cell = es.RNN(6, 8)
        self.out = nn.Linear(8, toy.VOCABULARY)
        with torch.no_grad():
            self.cell.weight_hh *= 0.3  # forgets fast


@pytest.mark.parametrize("immediate", [False, True])
def test_in_fit_it_is_brought_down(tmp_path: Path, immediate: bool) -> None:
    """Fitted with λΩ in the loss, Ω ends far below where it ends without."""

    def objective(strength: float) -> Any:
        def goal(model: nn.Module, batch: Any, state: Any) -> Iterator[Loss]:
            xs = model.embedding(batch.inputs)
            error, penalty, new = omega(
                model.cell,
                xs,
                lambda ys: toy.row_nats(model.out(ys), batch.targets, batch.lengths),
                state,
                lengths=batch.lengths,
                immediate=immediate,
            )
            yield Loss(error + strength * penalty, error.detach(), new)

        return goal

    ends = []
    for strength in (0.0, 2.0):
        model = Model()
        options = {"objective": objective(strength), "batches": toy.Lanes(ragged=True), "max_steps": 60}
        toy.run(tmp_path / str(strength), model=model, learning_rate=0.01, **options)
        batch = toy.Lanes(seed=3).batch(0, 0)
        with torch.no_grad():
            loss = lambda ys: toy.row_nats(model.out(ys), batch.targets, None)  # noqa: E731, B023
            ends.append(float(omega(model.cell, model.embedding(batch.inputs), loss)[1].mean()))
    assert ends[1] < 0.5 * ends[0]
