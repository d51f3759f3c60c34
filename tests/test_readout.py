"""Many steps to one vector, one vector to many steps, and one to one."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from laws import UserCell
from torch import Tensor, nn

import everstep as es
from everstep.state import leaves, map_state

F64 = torch.float64
D, H, T = 3, 4, 9
HOWS = ("last", "sum", "mean", "max", "attention")
LAYERS = {
    "GRU": lambda: es.GRU(D, H),
    "LSTM": lambda: es.LSTM(D, H),
    "UserCell": UserCell,
    "Stack": lambda: es.Stack(es.LSTM(D, H), es.GRU(H, H)),
    "Bidirectional concat": lambda: es.Bidirectional(es.LSTM(D, H), es.GRU(D, 2)),
    "Bidirectional sum": lambda: es.Bidirectional(es.LSTM(D, H), es.GRU(D, H), "sum"),
    "Bidirectional mean": lambda: es.Bidirectional(es.MinGRU(D, H), UserCell(), "mean"),
    "under one direction": lambda: es.EncoderStack(es.Bidirectional(es.GRU(D, H), es.GRU(D, H)), es.LSTM(2 * H, H)),
    "on top": lambda: es.EncoderStack(es.GRU(D, H), es.Bidirectional(es.GRU(H, 2), es.LSTM(H, 3))),
    "nested": lambda: es.EncoderStack(
        es.Bidirectional(es.GRU(D, 2), es.GRU(D, 2)),
        es.EncoderStack(es.Identity(H), es.Bidirectional(es.GRU(H, H), es.GRU(H, H), "mean")),
    ),
    "TimeSkip": lambda: es.TimeSkip(es.GRU(D, H), 2),
    "DeepTransition": lambda: es.DeepTransition(es.GRU(D, H), es.GRU(1, H)),
    "Delay": lambda: es.Delay(es.GRU(D, H), 2),
    "SkipStack": lambda: es.SkipStack(es.GRU(D, H), es.LSTM(D + H, 2)),
}


@cache
def _layer(name: str) -> es.Layer:
    torch.manual_seed(5)
    return LAYERS[name]().to(F64)


def read_out(name: str, how: str) -> es.ReadOut:
    """Over the layer of that name, which all of them share, so that it is traced once."""
    layer = _layer(name)
    torch.manual_seed(6)
    return es.ReadOut(layer, how).to(F64)


def carried(layer: es.Layer, batch: int) -> object:
    start = layer.initial_state(batch, torch.zeros(1, dtype=F64))
    return map_state(lambda leaf: (leaf + torch.randn_like(leaf) / 3).detach(), start)


def gradients(model: nn.Module, y: Tensor, xs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), [xs, *model.parameters()], materialize_grads=True))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", LAYERS)
def test_padded_equals_alone(name: str, how: str) -> None:
    model = read_out(name, how)
    lengths, state = torch.tensor([T, 4, 0, 1]), carried(model.layer, 4)
    xs = torch.randn(4, T, D, dtype=F64)
    for row, n in enumerate(lengths):
        xs[row, n:] = torch.nan
    xs.requires_grad_()
    y, final = model(xs, state, lengths=lengths)
    found = gradients(model, y, xs)
    assert y.shape == (4, model.output_size)
    assert all(torch.isfinite(part).all() for part in (y, *found))
    assert not y[2].any()
    total = [torch.zeros_like(part) for part in found]
    for row, n in enumerate(lengths.tolist()):
        x = xs[row : row + 1, :n].detach().requires_grad_()
        alone, end = model(x, map_state(lambda leaf, r=row: leaf[r : r + 1], state))
        torch.testing.assert_close(y[row : row + 1], alone, rtol=0, atol=1e-10)
        for (_, a), (_, b) in zip(leaves(final), leaves(end), strict=True):
            torch.testing.assert_close(a[row : row + 1], b, rtol=0, atol=1e-10)
        mine = gradients(model, alone, x) if n else [x, *total[1:]]
        total[0][row, :n] = mine[0][0]
        total[1:] = [a + b for a, b in zip(total[1:], mine[1:], strict=True)] if n else total[1:]
    for a, b in zip(found, total, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_the_written_formulas(name: str) -> None:
    xs = torch.randn(2, T, D, dtype=F64)
    hs, final = read_out(name, "sum").layer(xs)
    for how in HOWS[1:]:
        model = read_out(name, how)
        y, end = model(xs)
        if how == "attention":
            scores = torch.tanh(hs @ model.score.weight.T + model.score.bias) @ model.score_out.weight[0]
            want = torch.einsum("bt,bth->bh", torch.softmax(scores, 1), hs)
        else:
            want = {"sum": hs.sum(1), "mean": hs.mean(1), "max": hs.max(1).values}[how]
        torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
        for (_, a), (_, b) in zip(leaves(end), leaves(final), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_last_output_is_each_directions_own(name: str) -> None:
    xs = torch.randn(2, T, D, dtype=F64)
    model = read_out(name, "last")
    layer, below = model.layer, xs
    while type(layer) is es.EncoderStack:
        for lower in layer.layers[:-1]:
            below, _ = lower(below)
        layer = layer.layers[-1]
    if isinstance(layer, es.Bidirectional):
        ahead = es.scan(layer.forward_cell, below)[0][:, -1]
        back = es.scan(layer.backward_cell, below.flip(1))[0][:, -1]
        want = torch.cat([ahead, back], 1) if layer.merge == "concat" else ahead + back
        want = want / 2 if layer.merge == "mean" else want
        assert not torch.allclose(want, model.layer(xs)[0][:, -1])
    else:
        want = model.layer(xs)[0][:, -1]
    torch.testing.assert_close(model(xs)[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_last_is_what_torch_calls_the_final_state(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    theirs = kind(D, H, num_layers=2, bidirectional=True, batch_first=True).double()
    xs, lengths = torch.randn(3, T, D, dtype=F64), torch.tensor([T, 5, 1])
    packed = nn.utils.rnn.pack_padded_sequence(xs, lengths, batch_first=True)
    final = theirs(packed)[1]
    h = final[0] if kind is nn.LSTM else final
    y, _ = es.ReadOut(es.from_torch(theirs), "last")(xs, lengths=lengths)
    torch.testing.assert_close(y, torch.cat([h[-2], h[-1]], 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", HOWS)
def test_gradcheck(how: str) -> None:
    model = read_out("Bidirectional concat", how)
    xs, lengths = torch.randn(3, 4, D, dtype=F64, requires_grad=True), torch.tensor([4, 0, 2])
    names = [name for name, _ in model.named_parameters()]

    def run(xs: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (xs,), {"lengths": lengths})[0]

    assert torch.autograd.gradcheck(run, (xs, *model.parameters()), fast_mode=True)


@pytest.mark.parametrize("how", HOWS)
def test_no_steps_no_rows_and_copies(how: str) -> None:
    model = read_out("Bidirectional sum", how)
    for shape in ((2, 0), (0, 3), (0, 0)):
        for lengths in (None, torch.zeros(shape[0], dtype=torch.int64)):
            y, _ = model(torch.zeros(*shape, D, dtype=F64), lengths=lengths)
            assert y.shape == (shape[0], H)
            assert not y.any()
    xs, other = torch.randn(2, T, D, dtype=F64), copy.deepcopy(model)
    assert torch.equal(model(xs)[0], other(xs)[0])
    assert {name.split(".")[0] for name in model.state_dict()} <= {"layer", "score", "score_out"}
    with torch.autocast("cpu", torch.bfloat16):
        y, state = model.float()(xs.float(), lengths=torch.tensor([T, 0]))
    assert torch.isfinite(y).all()
    assert all(leaf.dtype == torch.float32 for _, leaf in leaves(state))


def test_a_read_out_learns_which_row_held_the_mark() -> None:
    """The mark is anywhere in a ragged row: every read-out of a GRU finds it."""
    for how in HOWS:
        torch.manual_seed(0)
        model, linear = es.ReadOut(es.GRU(1, 8), how), nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*model.parameters(), *linear.parameters()], 0.02)
        for _ in range(100):
            lengths, marked = torch.randint(4, 13, (32,)), torch.rand(32) < 0.5
            xs = torch.zeros(32, 12, 1)
            xs[torch.arange(32), (torch.rand(32) * lengths).long()] = marked.float()[:, None]
            score = linear(model(xs, lengths=lengths)[0])[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(score, marked.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.2, how


def test_read_outs_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="reduce should be one of last, sum, mean, max, attention, but is 'first'"):
        es.ReadOut(es.GRU(D, H), "first")
    with pytest.raises(TypeError, match="a Cell or a wiring, but got Linear"):
        es.ReadOut(nn.Linear(D, H), "last")
    with pytest.raises(ValueError, match=r"lengths should lie in 0 … 9 \(time\), but row 1 has 10"):
        es.ReadOut(es.GRU(D, H), "max")(torch.zeros(2, T, D), lengths=torch.tensor([T, 10]))


# -- one to many


def test_a_vector_starts_a_cell() -> None:
    torch.manual_seed(0)
    cell = es.Conditioned(es.LSTM(D, H), 2).double()
    xs, v = torch.randn(3, T, D, dtype=F64), torch.randn(3, 2, dtype=F64)
    h, c = (torch.tanh(v @ linear.weight.T) for linear in cell.starts)
    want, end = cell.cell(xs, (h, c))
    ys, state = cell(xs, cell.start(v))
    assert torch.equal(ys, want)
    assert torch.equal(state.c, end.c)
    (grad,) = torch.autograd.grad(ys[:, -1].sum(), cell.starts[1].weight)
    assert grad.abs().min() > 0


def test_a_vector_feeds_every_step_and_stays_in_the_state() -> None:
    torch.manual_seed(0)
    xs, v = torch.randn(3, T, D, dtype=F64), torch.randn(3, 2, dtype=F64)
    wide = torch.cat([xs, v[:, None].expand(-1, T, -1)], -1)
    for how in ("feed", "both"):
        cell = es.Conditioned(es.GRU(D + 2, H), 2, how).double()
        start = cell.start(v)
        want, _ = cell.cell(wide, start[0])
        ys, (_, kept) = cell(xs, start)
        torch.testing.assert_close(ys, want, rtol=0, atol=1e-12)
        assert torch.equal(kept, v)
        assert bool(start[0].any()) == (how == "both")
        first, middle = cell(xs[:, :4], start)
        second, _ = cell(xs[:, 4:], middle)
        torch.testing.assert_close(torch.cat([first, second], 1), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["start", "feed", "both"])
def test_no_vector_is_the_vector_of_zeros_and_a_reset_forgets_it(how: str) -> None:
    torch.manual_seed(0)
    cell = es.Conditioned(UserCell() if how == "start" else es.LSTM(D, H), 2, how).double()
    xs = torch.randn(3, T, cell.input_size, dtype=F64)
    initial = cell.initial_state(3, xs)
    for (_, a), (_, b) in zip(leaves(cell.start(torch.zeros(3, 2, dtype=F64))), leaves(initial), strict=True):
        assert torch.equal(a, b)
    resets = torch.zeros(3, T, dtype=torch.bool)
    resets[:, 4] = True
    start, lengths = cell.start(torch.randn(3, 2, dtype=F64)), torch.tensor([T, T, 4])
    ys, state = cell(xs, start, resets=resets, lengths=lengths)
    torch.testing.assert_close(ys[:2, 4:], cell(xs[:2, 4:])[0], rtol=0, atol=1e-12)
    if how != "start":  # the third row's reset lies in its padding
        assert not state[1][:2].any()
        assert torch.equal(state[1][2], start[1][2])


@pytest.mark.instructions
def test_a_vector_alone_makes_a_sequence() -> None:
    torch.manual_seed(0)
    encoder = es.ReadOut(es.Bidirectional(es.GRU(D, H), es.GRU(D, H)), "last")
    decoder = es.Conditioned(es.GRU(2 * H, H), 2 * H, "both")
    assert decoder.input_size == 0
    xs = torch.randn(2, T, D, requires_grad=True)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            v, _ = encoder(xs)
            ys, (h, _) = decoder(torch.zeros(2, 5, 0), decoder.start(v))
        assert ys.shape == (2, 5, H)
        assert h.dtype == torch.float32
        (grad,) = torch.autograd.grad(ys.float()[:, -1].sum(), xs)
        assert grad.abs().sum() > 0


def test_conditioned_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="mode should be 'start', 'feed' or 'both', but is 'end'"):
        es.Conditioned(es.GRU(D, H), 2, "end")
    with pytest.raises(ValueError, match="GRU has input_size 3 and v has 4 features"):
        es.Conditioned(es.GRU(D, H), 4, "feed")
    with pytest.raises(ValueError, match="size should be a whole number"):
        es.Conditioned(es.GRU(D, H), 0)
    for v, got in ((torch.zeros(2, 3), r"shape \(2, 3\)"), (torch.zeros(2), r"shape \(2,\)"), ([1.0], "list")):
        with pytest.raises(ValueError, match=rf"v should be \(batch, size=2\), but got {got}"):
            es.Conditioned(es.GRU(D, H), 2).start(v)


# -- one to one


@pytest.mark.parametrize("how", HOWS)
def test_one_to_one_is_a_sequence_of_one_step(how: str) -> None:
    model = read_out("LSTM", how)
    x = torch.randn(2, D, dtype=F64)
    want, state = model.layer.step(x, model.layer.initial_state(2, x))
    y, final = model(x[:, None])
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(final.c, state.c, rtol=0, atol=1e-12)
