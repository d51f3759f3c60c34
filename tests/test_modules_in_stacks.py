"""Modules of PyTorch that know no time stand in stacks as layers do; what cannot is refused with a way that works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import everstep as es
from tests.laws import D, H


@pytest.mark.parametrize(
    "above",
    [
        lambda: [nn.Linear(H, 3)],
        lambda: [nn.LayerNorm(H), nn.ReLU(), nn.Linear(H, 5, bias=False), nn.Tanh()],
        lambda: [nn.Sequential(nn.Linear(H, 7), nn.GELU(), nn.Linear(7, 2)), es.GRU(2, 3)],
        lambda: [nn.Dropout(0.5), es.LSTM(H, 2)],
        lambda: [nn.GLU(), nn.PReLU()],
        lambda: [nn.BatchNorm1d(H)],
    ],
)
def test_a_stack_runs_them_at_every_step(above: Any) -> None:
    torch.manual_seed(0)
    layers = above()
    gru, xs = es.GRU(D, H), torch.randn(3, 5, D)
    stack = es.Stack(gru, *layers).eval()
    want = gru(xs)[0]
    for layer in layers:
        want = layer(want)[0] if isinstance(layer, es.Layer) else layer(want.flatten(0, 1)).unflatten(0, (3, 5))
    ys, state = stack(xs)
    torch.testing.assert_close(ys, want)
    assert ys.shape[2] == stack.output_size
    assert len(state) == 1 + len(layers)
    ragged, _ = stack(xs, lengths=torch.tensor([5, 2, 0]))
    torch.testing.assert_close(ragged[1, :2], stack(xs[1:2, :2])[0][0])
    assert not ragged[1, 2:].any()
    assert not ragged[2].any()
    stepped, old = [], stack.initial_state(3, xs)
    for x in xs.unbind(1):
        y, old = stack.step(x, old)
        stepped.append(y)
    torch.testing.assert_close(torch.stack(stepped, 1), ys)
    stream = es.Stream(stack, 3)
    torch.testing.assert_close(torch.stack([stream(x) for x in xs.unbind(1)], 1), ys)
    assert str(es.explain(stack, xs)).count("TimeDistributed") == sum(not isinstance(one, es.Layer) for one in layers)


def test_padding_is_no_step_of_a_norm_of_the_batch() -> None:
    xs = torch.randn(2, 5, D)
    stack, alone = (es.Stack(nn.BatchNorm1d(D), nn.Linear(D, 2)) for _ in range(2))
    stack(torch.cat([xs, torch.full((2, 3, D), 1e3)], 1), lengths=torch.tensor([5, 5]))
    alone(xs)
    for ours, theirs in zip(stack.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_encoder_and_other_dtypes() -> None:
    encoder = es.EncoderStack(nn.Linear(D, 6), es.Bidirectional(es.GRU(6, 4), es.GRU(6, 4)), nn.Linear(8, 2)).double()
    ys, _ = encoder(torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True))
    assert ys.shape == (2, 5, 2)
    ys.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert es.TimeDistributed(nn.Linear(D, 6, device="meta")).output_size == 6
    assert es.Stack(es.TimeDistributed(nn.ReLU(), D), es.GRU(D, H)).input_size == D


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (
            lambda: es.Stack(es.GRU(D, H), nn.LSTM(H, 2)),
            TypeError,
            "Stack: layer 1 is a LSTM; everstep.from_torch",
        ),
        (
            lambda: es.Stack(nn.Embedding(9, D), es.GRU(D, H)),
            TypeError,
            "layer 0 is a Embedding; embed the tokens",
        ),
        (lambda: es.Stack(es.GRU(D, H), nn.GRUCell(H, 2)), TypeError, "write a Cell whose step .* everstep.GRU"),
        (lambda: es.Stack([es.GRU(D, H)]), TypeError, "layer 0 is a list; give the layers one by one"),
        (lambda: es.Stack(es.GRU(D, H), "x"), TypeError, "layer 1 is a str; give a Cell or a wiring"),
        (lambda: es.Stack(es.GRU(D, H), nn.Linear(9, 2)), ValueError, r"gives 4 features, .* takes 9"),
        (lambda: es.Stack(es.GRU(D, H), nn.Conv1d(H, 2, 1)), TypeError, r"Conv1d cannot take rows of shape \(3, 4\)"),
        (lambda: es.Stack(nn.ReLU(), es.GRU(D, H)), ValueError, "does not say how many features it takes; give"),
        (
            lambda: es.Stack(es.GRU(D, H), nn.TransformerEncoderLayer(H, 1, 2)),
            ValueError,
            "TransformerEncoderLayer sets rows against one another",
        ),
        (lambda: es.Stack(es.Bidirectional(es.GRU(D, H), es.GRU(D, H))), TypeError, "use EncoderStack for such layers"),
        (lambda: es.Residual(nn.Linear(D, D)), TypeError, r"Residual: Linear is no Cell; TimeDistributed\(Linear"),
        (
            lambda: es.Parallel(es.GRU(D, H), nn.Linear(D, 2)),
            TypeError,
            "Linear is no Cell; TimeDistributed",
        ),
        (lambda: es.Zoneout(nn.GRU(D, H), 0.1), TypeError, "Zoneout: GRU is no Cell; everstep.from_torch"),  # type: ignore[arg-type]
        (
            lambda: es.Bidirectional(nn.GRU(D, H), nn.GRU(D, H)),
            TypeError,
            "GRU is no Cell; everstep.from_torch",
        ),
    ],
)
def test_refusals_name_a_way_that_works(make: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make()


def test_the_ways_that_are_named_work() -> None:
    xs, gru, lstm, linear = torch.randn(2, 5, D), es.GRU(D, H), nn.LSTM(H, 2), nn.Linear(D, D)
    ys = gru(xs)[0]
    torch.testing.assert_close(es.Stack(gru, es.from_torch(lstm))(xs)[0], lstm(ys.transpose(0, 1))[0].transpose(0, 1))
    timed = es.TimeDistributed(linear)
    torch.testing.assert_close(es.Residual(timed)(xs)[0], xs + linear(xs))
    torch.testing.assert_close(es.Parallel(gru, timed)(xs)[0], torch.cat([ys, linear(xs)], -1))
    both, last = es.Bidirectional(gru, es.GRU(D, H)), nn.Linear(2 * H, 2)
    torch.testing.assert_close(es.EncoderStack(both, last)(xs)[0], last(both(xs)[0]))
