"""Normalised and masked cells against their equations, in training too."""

from __future__ import annotations

import copy

import pytest
import torch
from test_catalogue_variants import F64, B, D, H, T, inputs, made, same
from torch import Tensor, nn, sigmoid, tanh

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.state import map_state
from everstep.wirings.masks import dropout, dropout_mask
from tests.laws import refused


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
