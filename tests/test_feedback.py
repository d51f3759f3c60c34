"""The output fed back: free running and teacher forcing; and outputs that come late."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.native import toolchain
from everstep.state import leaves

F64 = torch.float64
B, D, H, OUT, T = 3, 3, 5, 2, 9


def jordan() -> es.Feedback:
    """h_t = tanh(W x_t + U y_{t-1} + b), y_t = V h_t + c: no other recurrence."""
    torch.manual_seed(1)
    return es.Feedback(es.FeedForward(D + OUT, H, OUT, linear_output=True)).double()


def recurrent() -> es.Feedback:
    torch.manual_seed(2)
    return es.Feedback(es.Stack(es.LSTM(D + OUT, H), es.FeedForward(H, OUT, linear_output=True))).double()


CELLS = {"jordan": jordan, "recurrent": recurrent}


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(B, T, D, dtype=F64), torch.randn(B, T, OUT, dtype=F64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def same_state(a: object, b: object) -> None:
    for (_, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
        same(x, y)


def test_a_jordan_network_is_its_equation() -> None:
    cell, (xs, _) = jordan(), data()
    hidden, out = cell.cell.layers
    w, u = hidden.weight.split([D, OUT], 1)
    y = torch.zeros(B, OUT, dtype=F64)
    ys, (inner, last) = cell(xs)
    for t in range(T):
        y = torch.tanh(xs[:, t] @ w.T + y @ u.T + hidden.bias) @ out.weight.T + out.bias
        same(ys[:, t], y)
    assert inner == ()
    same(last, y)


@pytest.mark.parametrize("name", CELLS)
def test_free_running_is_teacher_forcing_by_its_own_outputs(name: str) -> None:
    cell, (xs, targets) = CELLS[name](), data()
    free, end = cell(xs)
    taught, taught_end = cell.teacher_forced(xs, free)
    same(taught, free)
    same_state(taught_end, end)
    other, _ = cell.teacher_forced(xs, targets)
    same(other[:, 0], free[:, 0])
    assert (other[:, 1:] - free[:, 1:]).abs().amin(-1).min() > 1e-6


@pytest.mark.parametrize("name", CELLS)
def test_teaching_is_one_scan_over_inputs_and_outputs_before(name: str) -> None:
    cell, (xs, targets) = CELLS[name](), data()
    lengths, resets = torch.tensor([T, 5, 0]), torch.zeros(B, T, dtype=torch.bool)
    resets[0, 4] = resets[1, 7] = True
    start = cell(xs[:, :2])[1]
    before = torch.cat([start[1][:, None], targets[:, :-1]], 1)
    before[0, 4] = 0
    want, end = cell.cell(torch.cat([xs, before], -1), start[0], lengths=lengths, resets=resets)
    padded = [t.clone() for t in (xs, targets)]
    for t in padded:
        t[1, 5:] = t[2] = torch.nan
        t.requires_grad_()
    ys, (inner, last) = cell.teacher_forced(*padded, start, lengths=lengths, resets=resets)
    same(ys, want)
    same_state(inner, end)
    same(last, torch.stack([targets[0, -1], targets[1, 4], start[1][2]]))
    grads = torch.autograd.grad(ys.sum(), [*padded, *cell.parameters()])
    assert all(torch.isfinite(grad).all() for grad in grads)
    # the whole row is the first document and then the second, each begun afresh
    same(ys[:1, 4:], cell.teacher_forced(xs[:1, 4:], targets[:1, 4:])[0])


@pytest.mark.parametrize("name", CELLS)
def test_taught_in_chunks_and_then_left_alone(name: str) -> None:
    cell, (xs, targets) = CELLS[name](), data()
    whole, end = cell.teacher_forced(xs, targets)
    first, middle = cell.teacher_forced(xs[:, :4], targets[:, :4])
    second, last = cell.teacher_forced(xs[:, 4:], targets[:, 4:], middle)
    same(torch.cat([first, second], 1), whole)
    same_state(last, end)
    alone, _ = cell(xs[:, 4:], middle)
    same(alone[:, 0], whole[:, 4])
    y, state = cell.step(xs[:, 4], middle)
    same(y, whole[:, 4])
    forced, _ = cell.step(xs[:, 5], (state[0], targets[:, 4]))
    same(forced, whole[:, 5])
    nothing, kept = cell.teacher_forced(xs[:, :0], targets[:, :0], middle)
    assert nothing.shape == (B, 0, OUT)
    same_state(kept, middle)


def test_teaching_cuts_the_way_of_gradients_through_outputs() -> None:
    cell, (xs, targets) = jordan(), data()
    for ys, reaches in ((cell.teacher_forced(xs.requires_grad_(), targets)[0], False), (cell(xs)[0], True)):
        (grad,) = torch.autograd.grad(ys[:, -1].sum(), xs)
        assert bool(grad[:, :-1].any()) == reaches


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", CELLS)
def test_free_running_is_compiled(name: str) -> None:
    assert es.explain(CELLS[name](), data()[0]).backend == "fused"


@pytest.mark.instructions
def test_teaching_under_autocast_keeps_the_state_in_float32() -> None:
    cell, (xs, targets) = recurrent().float(), data()
    with torch.autocast("cpu", torch.bfloat16):
        _, state = cell.teacher_forced(xs.float(), targets.float())
        _, state = cell(xs.float(), state)
    assert all(leaf.dtype == torch.float32 for _, leaf in leaves(state))


def wave(size: int, time: int, phase: Tensor) -> Tensor:
    """sin, or cos and sin, of an angle that grows by 0.4 a step: (batch, time, size)."""
    angle = phase[:, None] + 0.4 * torch.arange(time)
    return torch.stack([torch.cos(angle), torch.sin(angle)], -1)[..., 2 - size :]


@pytest.mark.parametrize("size", [1, 2])
def test_taught_a_wave_it_runs_on_by_itself(size: int) -> None:
    """A Jordan network turns a point on a circle; a sine alone does not tell where it goes next, and needs a GRU."""
    torch.manual_seed(0)
    inner = es.FeedForward(2, 24, 2, linear_output=True)
    if size == 1:
        inner = es.Stack(es.GRU(1, 24), es.FeedForward(24, 1, linear_output=True))
    cell = es.Feedback(inner)
    optimizer = torch.optim.Adam(cell.parameters(), 0.01)
    for _ in range(400):
        targets = wave(size, 25, torch.rand(16) * 2 * math.pi)
        ys, _ = cell.teacher_forced(targets[..., :0], targets)
        loss = (ys - targets)[:, 5:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    truth = wave(size, 30, torch.rand(16) * 2 * math.pi)
    with torch.no_grad():
        _, state = cell.teacher_forced(truth[:, :15, :0], truth[:, :15])
        free, _ = cell(truth[:, 15:, :0], state)
        lost, _ = cell(truth[:, 15:, :0])
    error = (free - truth[:, 15:]).square().mean()
    assert error < 0.03, f"{error:.4f}; a guess of 0 has 0.5"
    assert (lost - truth[:, 15:]).square().mean() > 0.2


def test_feedback_of_a_conditioned_cell_makes_a_sequence_from_a_vector() -> None:
    cell = es.Feedback(es.Conditioned(es.Stack(es.GRU(OUT, H), es.FeedForward(H, OUT)), 4))
    v = torch.randn(B, 4)
    start = (cell.cell.start(v), torch.zeros(B, OUT))
    ys, _ = cell(torch.zeros(B, T, 0), start)
    assert ys.shape == (B, T, OUT)
    assert ys.std(0).min() > 0


def test_feedback_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"takes \[x; y\], but GRU has input_size 3 and output_size 4"):
        es.Feedback(es.GRU(3, 4))
    with pytest.raises(TypeError, match="Bidirectional is no Cell"):
        es.Feedback(es.Bidirectional(es.GRU(9, 4), es.GRU(9, 4)))
    cell, (xs, targets) = jordan(), data()
    for x, target, message in (
        (xs, targets[:, 1:], r"targets should be \(batch, time, 2\) as xs is, but got shape \(3, 8, 2\)"),
        (xs, targets[..., :1], r"got shape \(3, 9, 1\)"),
        (xs, None, "got NoneType"),
        (xs[..., 1:], targets, r"xs should be \(batch, time, 3\) as xs is, but got shape \(3, 9, 2\)"),
        (xs[0], targets, r"xs should be"),
        ([1.0], targets, "xs should be .* but got list"),
    ):
        with pytest.raises(ValueError, match=message):
            cell.teacher_forced(x, target)
    with pytest.raises(ValueError, match="row 0 has 10"):
        cell.teacher_forced(xs, targets, lengths=torch.tensor([10, 0, 0]))
    with pytest.raises(TypeError, match="state should be a tuple of 2"):
        cell.teacher_forced(xs, targets, torch.zeros(B, OUT))


# -- outputs that come late


def test_a_delayed_output_has_seen_d_more_steps() -> None:
    torch.manual_seed(0)
    inner = es.LSTM(D, H).double()
    for d in (1, 3):
        late, (xs, _) = es.Delay(inner, d), data()
        ys, state = late(xs)
        want, end = inner(torch.cat([xs, xs.new_zeros(B, d, D)], 1))
        same(ys, want[:, d:])
        same_state(state, end)
        xs.requires_grad_()
        (grad,) = torch.autograd.grad(late(xs)[0][:, 2].sum(), xs)
        assert grad[:, : 3 + d].abs().amin(0).amin(-1).min() > 0
        assert not grad[:, 3 + d :].any()


def test_every_document_is_delayed_within_itself() -> None:
    torch.manual_seed(0)
    inner, (xs, _) = es.GRU(D, H).double(), data()
    late = es.Delay(inner, 2)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[0, 3] = resets[0, 4] = resets[1, 0] = resets[1, 5] = resets[2, 6] = True
    lengths = torch.tensor([T, 7, 5])  # the last reset lies in the padding
    padded = xs.clone()
    padded[1, 7:] = padded[2, 5:] = torch.nan
    ys, state = late(padded, lengths=lengths, resets=resets)
    for row, documents in enumerate([[(0, 3), (3, 4), (4, T)], [(0, 5), (5, 7)], [(0, 5)]]):
        for first, end in documents:
            want, last = inner(torch.cat([xs[row : row + 1, first:end], xs.new_zeros(1, 2, D)], 1))
            same(ys[row : row + 1, first:end], want[:, 2:])
        same(state[row : row + 1], last)


def test_a_delayed_window_lines_up() -> None:
    xs = torch.tensor([[[1.0], [2.0], [3.0]]])
    ys, _ = es.Delay(es.Window(1, 3), 1)(xs)
    assert ys[0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0]]


def test_delay_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="d should be a whole number of at least 1, but is 0"):
        es.Delay(es.GRU(D, H), 0)
    with pytest.raises(TypeError, match="Delay is no Cell"):
        es.Delay(es.Delay(es.GRU(D, H), 1), 1)
    with pytest.raises(TypeError, match="Delay is no Cell"):
        es.Stack(es.Delay(es.GRU(D, H), 1))


def test_a_delayed_cell_learns_what_is_still_to_come() -> None:
    """The target of step t is x_{t+2}: no causal cell knows it, one delayed by 2 steps does."""
    loss = {}
    for name, wrap in (("plain", lambda cell: cell), ("delayed", lambda cell: es.Delay(cell, 2))):
        torch.manual_seed(0)
        model = es.EncoderStack(wrap(es.GRU(1, 12)), es.FeedForward(12, 1, linear_output=True))
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(150):
            xs = torch.rand(32, 12, 1) * 2 - 1
            error = (model(xs)[0][:, :-2] - xs[:, 2:]).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        loss[name] = float(error.detach())
    assert loss["delayed"] < 0.02
    assert loss["plain"] > 0.25
