"""Cells against PyTorch's modules with shared weights, equations that are wrong, and arguments that `scan` refuses."""

from __future__ import annotations

import inspect
import itertools
import pydoc

import pytest
import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.state import check_nest, leaves, map_state, unflatten
from tests.laws import refused

MODULES = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


def states_of(layer: es.Layer, state: object, module: nn.Module) -> object:
    """Our state in PyTorch's shape: one tensor (layers · directions, batch, hidden), or two for the LSTM."""
    flat = [leaf for _, leaf in leaves(state)]
    if isinstance(module, nn.LSTM):
        return torch.stack(flat[0::2]), torch.stack(flat[1::2])
    return torch.stack(flat)


OPTIONS = [(3, layers, both, True, first) for layers in (1, 3) for both in (False, True) for first in (False, True)]
OPTIONS += [(4, 3, False, False, False), (4, 1, True, False, True)]


@pytest.mark.parametrize(("size", "layers", "both", "bias", "first"), OPTIONS)
@pytest.mark.parametrize("kind", MODULES)
def test_from_torch_gives_the_same_numbers(
    kind: str, size: int, layers: int, both: bool, bias: bool, first: bool
) -> None:
    for nonlinearity in ("tanh", "relu") if kind == "RNN" else (None,):
        options = {} if nonlinearity is None else {"nonlinearity": nonlinearity}
        module = MODULES[kind](size, 4, layers, bias=bias, batch_first=first, bidirectional=both, **options).double()
        layer = es.from_torch(module)
        xs = torch.randn(5, 6, size, dtype=torch.float64, requires_grad=True)
        ys, state = layer(xs)
        want, final = module(xs if first else xs.transpose(0, 1))
        torch.testing.assert_close(ys, want if first else want.transpose(0, 1), rtol=0, atol=1e-12)
        torch.testing.assert_close(states_of(layer, state, module), final, rtol=0, atol=1e-12)
        (got,) = torch.autograd.grad(ys.square().sum(), xs, retain_graph=True)
        (expected,) = torch.autograd.grad(want.square().sum(), xs)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        back = es.to_torch(layer, batch_first=first)
        assert type(back) is type(module)
        assert repr(back) == repr(module)
        for name, value in module.state_dict().items():
            assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("kind", MODULES)
def test_dropout_between_layers_survives_the_round_trip(kind: str) -> None:
    module = MODULES[kind](3, 4, 3, dropout=0.25, batch_first=True)
    layer = es.from_torch(module)
    xs = torch.randn(2, 5, 3)
    torch.testing.assert_close(layer.eval()(xs)[0], module.eval()(xs)[0])
    assert not torch.equal(layer.train()(xs)[0], layer(xs)[0])
    assert es.to_torch(layer).dropout == 0.25


@pytest.mark.parametrize("kind", MODULES)
def test_ragged_equals_packed(kind: str) -> None:
    module = MODULES[kind](3, 4, bidirectional=True, batch_first=True).double()
    xs, lengths = torch.randn(4, 7, 3, dtype=torch.float64), torch.tensor([2, 7, 1, 4])
    packed = pack_padded_sequence(xs, lengths, batch_first=True, enforce_sorted=False)
    want, _ = pad_packed_sequence(module(packed)[0], batch_first=True)
    torch.testing.assert_close(es.from_torch(module)(xs, lengths=lengths)[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cell", "module"), [("LSTM", nn.LSTMCell), ("GRU", nn.GRUCell), ("RNN", nn.RNNCell)])
def test_state_dicts_interchange_with_torch_cells(cell: str, module: type[nn.Module]) -> None:
    theirs, ours = module(3, 4), getattr(es, cell)(3, 4)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3)
    want = theirs(x)
    got, _ = ours.step(x, ours.initial_state(2, x))
    torch.testing.assert_close(got, want[0] if cell == "LSTM" else want)


def test_cho_and_cudnn_gru_differ_only_in_the_place_of_the_reset() -> None:
    after, before = es.GRU(3, 4), es.GRUBefore(3, 4)
    before.load_state_dict(after.state_dict())
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    r, z = (sigmoid(nn.functional.linear(x, after.weight_ih[rows], after.bias_ih[rows])
                    + nn.functional.linear(h, after.weight_hh[rows], after.bias_hh[rows]))
            for rows in (slice(0, 4), slice(4, 8)))  # fmt: skip
    n = tanh(
        nn.functional.linear(x, after.weight_ih[8:], after.bias_ih[8:])
        + nn.functional.linear(r * h, after.weight_hh[8:], after.bias_hh[8:])
    )
    torch.testing.assert_close(before.step(x, h)[0], (1 - z) * n + z * h)
    assert not torch.allclose(before.step(x, h)[0], after.step(x, h)[0])


@pytest.mark.parametrize(("layers", "both", "bias"), list(itertools.product((1, 3), (False, True), (False, True))))
def test_a_projection_gives_the_same_numbers(layers: int, both: bool, bias: bool) -> None:
    options = {"bias": bias, "batch_first": True, "bidirectional": both}
    module = nn.LSTM(3, 4, layers, proj_size=2, **options).double()
    layer = es.from_torch(module)
    xs = torch.randn(5, 6, 3, dtype=torch.float64)
    ys, state = layer(xs)
    want, final = module(xs)
    torch.testing.assert_close(ys, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(states_of(layer, state, module), final, rtol=0, atol=1e-12)
    back = es.to_torch(layer)
    assert repr(back) == repr(module)
    torch.testing.assert_close(back.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert list(back.state_dict()) == list(module.state_dict())
    with pytest.raises(ValueError, match="smaller than hidden_size=4"):
        es.ProjectedLSTM(3, 4, 4)


def test_from_torch_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="Linear"):
        es.from_torch(nn.Linear(3, 4))


@pytest.mark.parametrize(
    "layer",
    [
        es.MinGRU(3, 4),
        es.GRU(3, 4, activation=torch.relu),
        es.Stack(es.LSTM(3, 4), es.GRU(4, 4)),
        es.Stack(es.LSTM(3, 4), es.LSTM(4, 5)),
        es.Stack(es.ProjectedLSTM(3, 4, 2), es.ProjectedLSTM(2, 4, 3)),
        es.Stack(es.LSTM(3, 4), es.Dropout(4, 0.5)),
        es.Stack(es.LSTM(3, 4), es.Dropout(4, 0.5), es.LSTM(4, 4), es.LSTM(4, 4)),
        es.Stack(es.RNN(3, 4), es.RNN(4, 4, activation=torch.relu)),
        es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4), "sum"),
    ],
)
def test_to_torch_refuses_what_torch_has_not(layer: es.Layer) -> None:
    with pytest.raises(ValueError, match="to_torch"):
        es.to_torch(layer)


def test_per_gate_biases() -> None:
    cell = es.LSTM(3, 4, bias={"f": 1.0, "o": -2.0})
    assert cell.bias_ih.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [-2.0] * 4
    assert not cell.bias_hh.any()
    with pytest.raises(ValueError, match=r"bias for \['q'\]"):
        es.LSTM(3, 4, bias={"q": 1.0})


def test_rows_exist_only_for_gates_that_the_equation_reads() -> None:
    @es.gated("a b c d", state="h m")
    def Odd(x, h, s):
        return tanh(x.b + h.a + h.of(s.m).d) + x.value.sum(-1, keepdim=True), s.m + x.c

    cell = Odd(3, 5)
    assert cell.input_gates == ("b", "c")
    assert cell.hidden_gates == ("a", "d")
    assert cell.weight_ih.shape == (10, 3)
    assert cell.weight_hh.shape == (10, 5)
    x, state = torch.randn(2, 3), (torch.randn(2, 5), torch.randn(2, 5))
    y, (h, m) = cell.step(x, state)
    bx, cx = nn.functional.linear(x, cell.weight_ih, cell.bias_ih).chunk(2, 1)
    a = nn.functional.linear(state[0], cell.weight_hh[:5], cell.bias_hh[:5])
    d = nn.functional.linear(state[1], cell.weight_hh[5:], cell.bias_hh[5:])
    torch.testing.assert_close(y, tanh(bx + a + d) + x.sum(-1, keepdim=True))
    assert torch.equal(h, y)
    torch.testing.assert_close(m, state[1] + cx)


def test_an_equation_without_weights_and_one_with_a_learned_activation() -> None:
    @es.gated("", state="h")
    def Sum(x, h, s):
        return x.value.mean(-1, keepdim=True) + s.h

    assert list(Sum(3, 5).parameters()) == []
    assert Sum(3, 5)(torch.ones(1, 2, 3))[0][0, 1, 0] == 2
    cell = es.RNN(3, 5, activation=nn.PReLU())
    assert "activation.weight" in dict(cell.named_parameters())


def test_help_shows_the_equation() -> None:
    page = pydoc.render_doc(es.LSTM)
    assert "c = sigmoid(x.f + h.f) * s.c + sigmoid(x.i + h.i) * tanh(x.g + h.g)" in page
    assert "Gates: i f g o" in page
    assert inspect.getdoc(es.LSTM).startswith("LSTM with forget gate")


def test_wrong_equations_are_refused_where_they_are_written() -> None:
    def misspelt(x, h, s):
        return x.k

    def too_many(x, h, s):
        return x.f, x.f

    def no_tensor(x, h, s):
        return 3

    def wrong_shape(x, h, s):
        return x.f.sum(-1)

    for equation, message in (
        (misspelt, "no gate 'k'"),
        (too_many, "new h should be"),
        (no_tensor, "new h should be"),
        (wrong_shape, "new h should be"),
    ):
        with pytest.raises((AttributeError, TypeError), match=message):
            es.gated("f")(equation)
    with pytest.raises(TypeError, match=r"new state \(h c\), but gives Tensor"):
        es.gated("f", state="h c")(lambda x, h, s: x.f)
    for gates, state in (("f f", "h"), ("f", ""), ("a-b", "h"), ("value", "h"), ("f", "h h")):
        with pytest.raises(ValueError, match="different identifiers"):
            es.gated(gates, state=state)
    with pytest.raises(TypeError, match=r"unknown \['speed'\]"):
        es.RNN(3, 4, speed=1)

    @es.gated("f")
    def Needs(x, h, s, *, slope):
        return slope * x.f

    with pytest.raises(TypeError, match=r"missing \['slope'\]"):
        Needs(3, 4)
    assert Needs(3, 4, slope=2.0).step(torch.ones(1, 3), torch.ones(1, 4))[0].shape == (1, 4)


def test_a_subclass_with_its_own_step_leaves_the_vendor_kernel() -> None:
    class Doubled(es.LSTM):
        def step(self, x: Tensor, state: object) -> object:
            y, new = super().step(x, state)
            return 2 * y, new

    cell, xs = Doubled(3, 4), torch.randn(2, 5, 3)
    plain = es.LSTM(3, 4)
    plain.load_state_dict(cell.state_dict())
    torch.testing.assert_close(cell(xs)[0], 2 * plain(xs)[0])
    assert "a step of its own" in str(refused(BACKENDS["vendor"], cell, xs, None, None))

    class Renamed(es.LSTM):
        pass

    assert refused(BACKENDS["vendor"], Renamed(3, 4), xs, None, None) is None


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3", None])
def test_sizes_are_positive_whole_numbers(size: object) -> None:
    with pytest.raises(ValueError, match="input_size should be a whole number"):
        es.LSTM(size, 4)
    with pytest.raises(ValueError, match="hidden_size should be a whole number"):
        es.LSTM(4, size)


def test_a_cell_may_set_its_sizes_itself() -> None:
    class Sizeless(es.Cell):
        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return h + x, h + x

    cell = Sizeless()
    with pytest.raises(TypeError, match="input_size and output_size not set"):
        cell(torch.ones(1, 2, 3))
    cell.input_size = cell.output_size = 3
    assert cell(torch.ones(1, 2, 3))[0][0, 1].tolist() == [2.0, 2.0, 2.0]


XS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"xs": torch.zeros(2, 5)}, ValueError, r"xs should be \(batch, time, input_size=3\), but got shape \(2, 5\)"),
        ({"xs": torch.zeros(2, 5, 4)}, ValueError, r"got shape \(2, 5, 4\)"),
        ({"xs": [[1.0]]}, ValueError, "got list"),
        ({"xs": torch.zeros(2, 5, 3, dtype=torch.int64)}, TypeError, "floating point"),
        ({"xs": XS.double()}, TypeError, "torch.float64, but the parameters are torch.float32"),
        ({"xs": XS.to("meta")}, ValueError, "xs is on meta"),
        ({"lengths": torch.tensor([5, 6])}, ValueError, "row 1 has 6"),
        ({"lengths": torch.tensor([-1, 5])}, ValueError, "row 0 has -1"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "whole numbers"),
        ({"lengths": torch.tensor([1, 2]).to(torch.uint16)}, TypeError, "whole numbers"),
        ({"lengths": torch.tensor([5])}, ValueError, r"shape \(2,\), but has \(1,\)"),
        ({"lengths": [5, 5]}, TypeError, "should be a tensor"),
        ({"lengths": torch.tensor([5, 5]).to("meta")}, ValueError, "lengths should be on cpu"),
        ({"resets": torch.zeros(2, 4, dtype=torch.bool)}, ValueError, r"resets should have shape \(2, 5\)"),
        ({"resets": torch.zeros(2, 5)}, TypeError, "resets should be bool"),
        ({"state": torch.zeros(2, 4)}, TypeError, "state should be a tuple of 2, but is Tensor"),
        ({"state": (torch.zeros(2, 4),)}, TypeError, "but is a tuple of 1"),
        ({"state": (torch.zeros(2, 4), torch.zeros(3, 4))}, ValueError, "leaf 'c' should have shape|leaf '1' should"),
        ({"state": (torch.zeros(2, 4), [0])}, TypeError, "state.c should be a tensor, but is list"),
        ({"state": (torch.zeros(2, 4), torch.zeros(2, 4).double())}, ValueError, "dtype torch.float32"),
        ({"backend": "warp"}, ValueError, "one of fused, vendor, parallel, reference"),
        ({"backend": "parallel"}, ValueError, "'parallel' cannot run LSTM: its step is not declared affine"),
        ({"layer": nn.Linear(3, 4)}, TypeError, "a Cell or a wiring, but got Linear"),
    ],
)
def test_scan_refuses_wrong_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"layer": es.LSTM(3, 4), "xs": XS, "state": None, **arguments}
    with pytest.raises(error, match=message):
        es.scan(**given)


def test_a_leaf_of_a_deep_nest_is_named() -> None:
    stack = es.Stack(es.GRU(3, 4), es.LSTM(4, 4))
    state = (torch.zeros(2, 4), (torch.zeros(2, 4), torch.zeros(2, 5)))
    with pytest.raises(ValueError, match=r"leaf '1\.1' should have shape \(2, 4\)"):
        stack(XS, state)
    with pytest.raises(TypeError, match=r"state\.1 should be a tuple of 2"):
        stack(XS, (torch.zeros(2, 4), torch.zeros(2, 4)))
    with pytest.raises(TypeError, match="a dict with keys"):
        check_nest("x", {"a": 1}, {"b": torch.zeros(1)})
    with pytest.raises(ValueError, match="2 leaves, but got 1 values"):
        unflatten((XS, XS), [XS])


def test_plain_tuples_are_states_too() -> None:
    cell, xs = es.LSTM(3, 4), torch.randn(2, 5, 3)
    _, state = cell(xs)
    ys, again = cell(xs, tuple(state))
    assert torch.equal(ys, cell(xs, state)[0])
    assert again.c.shape == (2, 4)


def test_wirings_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"layer 0 \(LSTM\) gives 4 features, but layer 1 \(GRU\) takes 5"):
        es.Stack(es.LSTM(3, 4), es.GRU(5, 4))
    with pytest.raises(ValueError, match="at least one layer"):
        es.Stack()
    with pytest.raises(TypeError, match="Bidirectional is no Cell"):
        es.Stack(es.Bidirectional(es.GRU(3, 4), es.GRU(3, 4)))
    with pytest.raises(ValueError, match="GRU has 3 and 4"):
        es.Residual(es.GRU(3, 4))
    with pytest.raises(ValueError, match="should agree"):
        es.Bidirectional(es.GRU(3, 4), es.GRU(4, 4))
    with pytest.raises(ValueError, match="merge"):
        es.Bidirectional(es.GRU(3, 4), es.GRU(3, 4), "max")
    with pytest.raises(ValueError, match=r"\[0, 1\), but is 1"):
        es.Dropout(3, 1)
    with pytest.raises(ValueError, match="no state leaf 'q'; LSTM has h, c"):
        es.Zoneout(es.LSTM(3, 4), {"q": 0.1})


def test_masks_are_constant_over_the_sequence_and_off_in_eval() -> None:
    xs = torch.ones(4, 50, 6)
    once = es.VariationalDropout(es.Identity(6), 0.5)
    ys, _ = once(xs)
    assert torch.equal(ys, ys[:, :1].expand_as(ys))
    assert set(ys.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(ys, once(xs)[0])
    each, _ = es.Dropout(6, 0.5)(xs)
    assert not torch.equal(each, each[:, :1].expand_as(each))
    assert torch.equal(once.eval()(xs)[0], xs)
    with pytest.raises(RuntimeError, match="mask"):
        once.train().step(xs[:, 0], ())


def test_zoneout_keeps_units_in_training_and_their_mean_in_eval() -> None:
    cell = es.Zoneout(es.LSTM(3, 4), {"c": 0.5})
    xs = torch.randn(2, 400, 3)
    start = map_state(lambda leaf: leaf + 0.3, cell.initial_state(2, xs))
    _, state = cell(xs[:, :1], start)
    kept = (state.c == start.c).float().mean()
    assert 0 < kept < 1
    assert not (state.h == start.h).any()
    share = torch.stack([cell(xs[:, t : t + 1], start)[1].c == start.c for t in range(400)]).float().mean()
    assert abs(share - 0.5) < 0.05
    _, plain = cell.cell.step(xs[:, 0], start)
    _, mean = cell.eval().step(xs[:, 0], start)
    torch.testing.assert_close(mean.c, 0.5 * start.c + 0.5 * plain.c)
    torch.testing.assert_close(mean.h, plain.h)


def test_explain_says_what_runs_and_why_not_the_others() -> None:
    stack = es.Stack(es.LSTM(3, 4), es.Dropout(4, 0.1), es.MinGRU(4, 4), es.Residual(es.GRUBefore(4, 4)))
    told = str(es.explain(stack, XS))
    for cell in ("MinGRU(4, 4)", "GRUBefore(4, 4)"):
        assert f"{cell}: fused" in told
    assert "bound by memory" in told
    assert "2 products" in told
    half = str(es.explain(stack.bfloat16(), XS.bfloat16()))
    assert "LSTM(3, 4): vendor" in half
    assert "MinGRU(4, 4): parallel" in half
    assert "GRUBefore(4, 4): reference" in half
    assert "not vendor: its step is none of torch.nn.LSTM, GRU, RNN" in half


def test_mogrifier_is_its_formula() -> None:
    cell = es.MogrifierLSTM(3, 4, rounds=3).double()
    x, h, c = (torch.randn(2, size, dtype=torch.float64) for size in (3, 4, 4))
    first, second = cell.weight_q.split(3)
    low = 2 * torch.sigmoid(h @ first.T) * x
    gated = 2 * torch.sigmoid(low @ cell.weight_r.T) * h
    low = 2 * torch.sigmoid(gated @ second.T) * low
    i, f, g, o = (low @ cell.weight_ih.T + cell.bias_ih + gated @ cell.weight_hh.T + cell.bias_hh).chunk(4, -1)
    memory = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    y, state = cell.step(x, (h, c))
    torch.testing.assert_close(state[1], memory)
    torch.testing.assert_close(y, torch.sigmoid(o) * torch.tanh(memory))


def test_mogrifier_of_full_rank_and_of_no_round() -> None:
    full, low = es.MogrifierLSTM(3, 4, rounds=2), es.MogrifierLSTM(3, 4, rounds=2, rank=3)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(low, name).copy_(getattr(full, name))
        full.weight_q.copy_(low.left_q @ low.right_q)
        full.weight_r.copy_(low.left_r @ low.right_r)
    xs = torch.randn(2, 5, 3)
    torch.testing.assert_close(full(xs)[0], low(xs)[0])
    none, lstm = es.MogrifierLSTM(3, 4, rounds=0), es.LSTM(3, 4)
    lstm.load_state_dict(none.state_dict())
    torch.testing.assert_close(none(xs)[0], lstm(xs)[0])
    for options, message in (({"rounds": -1}, "rounds should be"), ({"rank": 0}, "rank should be")):
        with pytest.raises(ValueError, match=message):
            es.MogrifierLSTM(3, 4, **options)
