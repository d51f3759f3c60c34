"""Depth before, after and within a step, and skips up the stack."""

from __future__ import annotations

import pytest
import torch
from torch import nn, sigmoid, tanh

import everstep as es
from everstep.native import toolchain

F64 = torch.float64
B, D, H, T = 2, 3, 4, 7
needs_compiler = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


def made(cell: es.Layer) -> es.Layer:
    torch.manual_seed(3)
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.5)
    return cell.double()


def inputs(size: int = D) -> torch.Tensor:
    torch.manual_seed(4)
    return torch.randn(B, T, size, dtype=F64)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_feed_forward_is_the_same_network_at_every_step() -> None:
    xs = inputs()
    net = made(es.FeedForward(D, 5, H, activation=sigmoid))
    a, b = net.layers
    same(net(xs)[0], sigmoid(b(sigmoid(a(xs)))))
    line = made(es.FeedForward(D, 5, H, activation=nn.PReLU(), linear_output=True))
    a, b = line.layers
    same(line(xs)[0], b(line.activation(a(xs))))
    assert "activation.weight" in line.state_dict()


def test_deep_input_and_output_are_computed_at_once() -> None:
    calls = []
    deep = es.Stack(es.FeedForward(D, 5, H), es.GRUBefore(H, H), es.FeedForward(H, 2)).double()
    for layer in (deep.layers[0], deep.layers[2]):
        layer.layers[0].register_forward_hook(lambda *what: calls.append(what[1][0].shape))
    ys, _ = deep(inputs())
    assert ys.shape == (B, T, 2)
    assert calls == [(B, T, D), (B, T, H)]
    told = str(es.explain(deep, inputs()))
    assert told.count("computed at once, without a scan") == 2


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_deep_transition_of_the_paper(shortcut: bool) -> None:
    cell, xs = made(es.DTRNN(D, H, depth=3, shortcut=shortcut, activation=sigmoid)), inputs()
    ys, final = cell(xs)
    (u1, u2, u3), (b1, b2, b3) = cell.weight_hh.chunk(3), cell.bias_hh.chunk(3)
    h = torch.zeros(B, H, dtype=F64)
    for t in range(T):
        z = sigmoid(xs[:, t] @ cell.weight_ih.T + h @ u1.T + b1)
        z = sigmoid(z @ u2.T + b2)
        h = sigmoid(z @ u3.T + b3 + (h @ cell.weight_skip.T if shortcut else 0))
        same(ys[:, t], h)
    same(final, h)


def test_a_shortcut_over_one_layer_is_that_of_the_authors() -> None:
    """pascanur/GroundHog, groundhog/layers/rec_layers.py, RecurrentMultiLayerShortPath with two layers."""
    cell, xs = made(es.DTRNN(D, H, shortcut=True)), inputs()
    (w1, w2), (b1, b2), h = cell.weight_hh.chunk(2), cell.bias_hh.chunk(2), torch.zeros(B, H, dtype=F64)
    for x, y in zip(xs.unbind(1), cell(xs)[0].unbind(1), strict=True):
        below = tanh(h @ w1.T + x @ cell.weight_ih.T + b1)
        h = tanh(below @ w2.T + h @ cell.weight_skip.T + b2)
        same(y, h)


def test_a_shortcut_lets_gradients_pass() -> None:
    """With U_L = 0 nothing comes through the deep way, and S alone carries the state on."""
    left = {}
    for shortcut in (False, True):
        cell = made(es.DTRNN(D, H, shortcut=shortcut))
        nn.init.zeros_(cell.weight_hh[H:])
        if shortcut:
            nn.init.eye_(cell.weight_skip)
        nn.init.zeros_(cell.bias_hh)
        start = torch.full((B, H), 0.1, dtype=F64, requires_grad=True)
        ys, _ = cell(torch.zeros(B, T, D, dtype=F64), start)
        left[shortcut] = float(torch.autograd.grad(ys[:, -1].sum(), start)[0].abs().max())
    assert left[False] == 0
    assert left[True] > 0.8


def test_transitions_of_plain_cells_are_the_papers_cell() -> None:
    deep, xs = made(es.DTRNN(D, H)), inputs()
    first, second = es.RNN(D, H).double(), es.RNN(1, H).double()
    with torch.no_grad():
        first.weight_ih.copy_(deep.weight_ih)
        for rnn, weight, bias in zip((first, second), deep.weight_hh.chunk(2), deep.bias_hh.chunk(2), strict=True):
            rnn.weight_hh.copy_(weight)
            rnn.bias_hh.copy_(bias)
            rnn.bias_ih.zero_()
    wired = es.DeepTransition(first, second)
    same(wired(xs)[0], deep(xs)[0])
    (unused,) = torch.autograd.grad(wired(xs)[0].sum(), second.weight_ih)
    assert not unused.any()


def test_transitions_of_highway_cells_are_the_highway_network() -> None:
    whole, xs = made(es.RHN(D, H, depth=3)), inputs()
    parts = [es.RHN(D if n == 0 else 1, H, depth=1).double() for n in range(3)]
    with torch.no_grad():
        parts[0].weight_ih.copy_(whole.weight_ih)
        for part, weight, bias in zip(parts, whole.weight_hh.chunk(3), whole.bias_hh.chunk(3), strict=True):
            part.weight_hh.copy_(weight)
            part.bias_hh.copy_(bias)
    ys, state = es.DeepTransition(*parts)(xs)
    want, end = whole(xs)
    same(ys, want)
    same(state, end)


def test_transitions_hand_the_whole_state_on() -> None:
    a, b = made(es.LSTM(D, H)), made(es.LSTM(2, H))
    cell, xs = es.DeepTransition(a, b), inputs()
    ys, (h, c) = cell(xs)
    state = a.initial_state(B, xs)
    for t in range(T):
        _, state = a.step(xs[:, t], state)
        y, state = b.step(torch.zeros(B, 2, dtype=F64), state)
        same(ys[:, t], y)
    same(h, state.h)
    same(c, state.c)


@needs_compiler
def test_deep_transitions_are_compiled() -> None:
    for cell in (es.DTRNN(D, H, shortcut=True), es.DeepTransition(es.GRU(D, H), es.GRU(1, H), es.GRU(1, H))):
        assert es.explain(cell, torch.zeros(B, T, D)).backend == "fused"


def test_skips_up_the_stack() -> None:
    cells = [made(es.LSTM(D, 2)), made(es.GRU(D + 2, H)), made(es.RNN(D + H, 5))]
    xs = inputs()
    ys, (first, _, third) = es.SkipStack(*cells)(xs)
    h1, end = cells[0](xs)
    h2, _ = cells[1](torch.cat([xs, h1], -1))
    h3, last = cells[2](torch.cat([xs, h2], -1))
    same(ys, torch.cat([h1, h2, h3], -1))
    same(first.c, end.c)
    same(third, last)


def test_the_encoder_of_gnmt() -> None:
    """Both directions at the bottom, then one direction, residual from the third layer on."""
    torch.manual_seed(0)
    bottom, second = es.Bidirectional(es.LSTM(D, H), es.LSTM(D, H)), es.LSTM(2 * H, H)
    upper = [es.Residual(es.LSTM(H, H)) for _ in range(6)]
    encoder, xs = es.EncoderStack(bottom, second, *upper).double(), inputs()
    lengths = torch.tensor([T, 4])
    ys, _ = encoder(xs, lengths=lengths)
    want = second(bottom(xs, lengths=lengths)[0], lengths=lengths)[0]
    for layer in upper:
        want = want + layer.cell(want, lengths=lengths)[0]
    same(ys, want)
    assert not isinstance(encoder, es.Cell)
    with pytest.raises(TypeError, match="Bidirectional is no Cell"):
        es.Stack(bottom, second, *upper)


def test_shortcuts_bring_the_gradient_down_eight_layers() -> None:
    """As they start, 8 plain LSTM layers hand almost nothing to the lowest, and 8 residual ones do."""
    reached = {}
    for name, wrap in (("plain", lambda cell: cell), ("residual", es.Residual)):
        torch.manual_seed(0)
        stack = es.Stack(*[wrap(es.LSTM(16, 16)) for _ in range(8)])
        ys, _ = stack(torch.randn(4, 20, 16))
        weights = [next(layer.parameters()) for layer in (stack.layers[0], stack.layers[-1])]
        below, above = (grad.norm() for grad in torch.autograd.grad(ys.square().sum(), weights))
        reached[name] = float(below / above)
    assert reached["plain"] < 0.01
    assert reached["residual"] > 0.3


def test_deep_wirings_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one layer is needed"):
        es.FeedForward(D)
    with pytest.raises(ValueError, match="the size of layer 2 should be a whole number of at least 1, but is 0"):
        es.FeedForward(D, 4, 0)
    with pytest.raises(ValueError, match="depth should be at least 2"):
        es.DTRNN(D, H, depth=1)
    with pytest.raises(ValueError, match=r"cell 1 \(GRU\): state leaf 'state' should have shape \(1, 4\)"):
        es.DeepTransition(es.GRU(D, H), es.GRU(1, 5))
    with pytest.raises(TypeError, match=r"cell 1 \(GRU\): state should be a tuple of 2"):
        es.DeepTransition(es.LSTM(D, H), es.GRU(1, H))
    with pytest.raises(ValueError, match=r"cell 1 \(GRU\) should take \[x; h\], 3 and 4 features, but its input_size"):
        es.SkipStack(es.GRU(D, H), es.GRU(H, H))
    for wiring in (es.DeepTransition, es.SkipStack):
        with pytest.raises(ValueError, match=f"{wiring.__name__}: at least one cell"):
            wiring()
        with pytest.raises(TypeError, match=f"{wiring.__name__}: Bidirectional is no Cell"):
            wiring(es.Bidirectional(es.GRU(D, H), es.GRU(D, H)))


def test_an_activation_of_a_deep_cell_may_be_a_module() -> None:
    cell = es.DTRNN(D, H, activation=nn.PReLU()).double()
    assert "activation.weight" in cell.state_dict()
    plain = es.DTRNN(D, H, activation=tanh, bias=False).double()
    assert "bias_hh" not in plain.state_dict()
    assert plain(inputs())[0].shape == (B, T, H)
