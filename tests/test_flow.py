"""Gradient flow and sensitivity: equal to brute force and to what is known in closed form, for every cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from laws import CELLS, LAYERS
from matplotlib.image import imread
from torch import Tensor

import everstep as es
from everstep.lab.remember import ASKED, SHOWN, SYMBOLS, Recaller, pictures, sequences
from everstep.look.flow import Flow, draw_flow, gradient_flow
from everstep.look.sensitivity import draw_sensitivity, sensitivity
from everstep.state import detach, leaves

F64 = torch.float64


class Linear(es.Cell):
    """h_t = W h_{t-1} + x_t."""

    def __init__(self, w: Tensor):
        super().__init__(len(w), len(w))
        self.w = w

    def step(self, x, h):
        h = h @ self.w.T + x
        return h, h


def test_linear_flow_is_the_norm_of_v_w_to_the_k() -> None:
    torch.manual_seed(0)
    w, v = torch.randn(4, 4, dtype=F64) / 2, torch.randn(4, dtype=F64)
    flow = gradient_flow(Linear(w), torch.randn(3, 30, 4, dtype=F64), lags=20, loss=lambda ys: ys @ v)
    expected = [float((v @ torch.linalg.matrix_power(w, k)).norm()) for k in range(21)]
    assert flow.norms.shape == (1, 3 * 10, 21)
    np.testing.assert_allclose(flow.norms[0], np.tile(expected, (30, 1)), rtol=1e-12)


@pytest.mark.parametrize("decay", [1e-6, 1e6])
def test_a_flow_in_float64_is_followed_to_the_ends_of_float64(decay: float) -> None:
    v = torch.tensor([3.0, 4.0], dtype=F64)
    flow = gradient_flow(
        Linear(decay * torch.eye(2, dtype=F64)), torch.zeros(1, 52, 2, dtype=F64), lags=50, loss=lambda ys: ys @ v
    )
    np.testing.assert_allclose(flow.mean[0], 5 * decay ** np.arange(51.0), rtol=1e-12)


def test_open_forget_gates_keep_the_cells_gradient_whole() -> None:
    cell = es.LSTM(2, 3, dtype=F64)
    with torch.no_grad():
        cell.weight_hh.zero_()
        cell.gate_rows(cell.weight_ih, "f", cell.input_gates).zero_()
        cell.gate_rows(cell.bias_ih, "f", cell.input_gates).fill_(50.0)
    xs = torch.randn(1, 60, 2, dtype=F64)
    flow = gradient_flow(cell, xs, lags=50, leaves=True)
    by_leaf = dict(zip(flow.names, flow.norms, strict=True))
    np.testing.assert_allclose(by_leaf["LSTM, c"], by_leaf["LSTM, c"][:, :1].repeat(51, 1), rtol=1e-14)
    assert by_leaf["LSTM, c"].min() > 0.01
    assert not by_leaf["LSTM, h"][:, 1:].any()  # its matrix is 0
    # both leaves together
    whole = gradient_flow(cell, xs, lags=50).norms[0]
    np.testing.assert_allclose(whole, np.hypot(by_leaf["LSTM, c"], by_leaf["LSTM, h"]), rtol=1e-12)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "UserCell", "TimeSkip", "Zoneout", "MLSTM", "SCRN", "QRNN"])
def test_flow_is_the_brute_force_jacobian(name: str) -> None:
    torch.manual_seed(1)
    cell = CELLS[name]().double().eval()
    xs = torch.randn(1, 9, cell.input_size, dtype=F64)
    flow = gradient_flow(cell, xs, lags=6, samples=1, loss=lambda ys: ys.sum(-1))
    state, states = cell.initial_state(1, xs), []
    for x in xs.unbind(1):
        _, state = cell.step(x, state)
        states.append(detach(state))
    for lag in range(1, 7):  # y_7 by the state after step 7 − lag

        def output(start, lag=lag):
            for x in xs[:, 7 - lag : 7].unbind(1):
                y, start = cell.step(x, start)
            return y.sum()

        gradients = torch.func.grad(output)(states[6 - lag])
        expected = sum(float(leaf.detach().square().sum()) for _, leaf in leaves(gradients)) ** 0.5
        assert flow.norms[0, 0, lag] == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_a_stacks_layers_are_the_blocks_of_its_state() -> None:
    torch.manual_seed(2)
    stack = es.Stack(es.RNN(2, 3), es.Dropout(3, 0.5), es.Residual(es.RNN(3, 3))).double().eval()
    xs = torch.randn(1, 8, 2, dtype=F64)
    flow = gradient_flow(stack, xs, lags=5, samples=1, loss=lambda ys: ys.sum(-1))
    assert flow.names == ("layer 1 RNN", "layer 2 RNN")
    for lag in range(1, 6):
        start = detach(stack(xs[:, : 6 - lag])[1])
        gradients = torch.func.grad(lambda s, k=lag: stack(xs[:, 6 - k : 6], s, backend="reference")[0][0, -1].sum())(
            start
        )
        expected = [float(gradients[place].detach().norm()) for place in (0, 2)]
        np.testing.assert_allclose(flow.norms[:, 0, lag], expected, rtol=1e-10)


def test_double_precision_sees_what_single_loses() -> None:
    xs = torch.zeros(1, 200, 1)
    short, long = (gradient_flow(Linear(torch.eye(1, dtype=d) / 4), xs, lags=150, dtype=d) for d in (xs.dtype, F64))
    assert short.mean[0, -1] == 0
    assert long.mean[0, -1] == pytest.approx(0.25**150)


STATELESS = ("Identity", "Dropout", "FeedForward", "TimeDistributed")


@pytest.mark.parametrize("name", [n for n in CELLS if n not in STATELESS])
def test_every_cell_has_a_flow(name: str) -> None:
    torch.manual_seed(3)
    cell = CELLS[name]()
    assert cell.training
    flow = gradient_flow(cell, torch.randn(2, 8, cell.input_size), lags=4, samples=2)
    assert flow.norms.shape == (len(flow.names), 4, 5)
    assert np.isfinite(flow.norms).all()
    assert cell.training  # a copy was measured
    silent = not cell.eval()(torch.ones(1, 8, cell.input_size), backend="reference")[
        0
    ].any()  # a read-out not learned yet
    assert silent or flow.norms[..., 1].max() > 0


@pytest.mark.parametrize("name", ["LSTM", "Stack", "nested", "Residual", "Window", "Bidirectional", "EncoderStack"])
def test_sensitivity_is_the_brute_force_jacobian(name: str) -> None:
    torch.manual_seed(4)
    layer = LAYERS[name]().double().eval()
    xs = torch.randn(1, 6, layer.input_size, dtype=F64)
    for source in (0, 2):

        def outputs(x, source=source):
            return layer(torch.cat([xs[:, :source], x, xs[:, source + 1 :]], 1), backend="reference")[0]

        jacobian = torch.func.jacrev(outputs)(xs[:, source : source + 1])
        expected = jacobian[0].flatten(1).norm(dim=1)
        found = sensitivity(layer, xs, source=source)
        np.testing.assert_allclose(found.norms[-1], expected.detach(), rtol=1e-9, atol=1e-14)


def test_sensitivity_of_a_linear_network() -> None:
    w = torch.diag(torch.tensor([0.5, 0.25], dtype=F64))
    norms = sensitivity(Linear(w), torch.randn(5, 8, 2, dtype=F64)).norms[0]
    np.testing.assert_allclose(norms, [np.hypot(0.5**t, 0.25**t) for t in range(8)], rtol=1e-12)
    states = sensitivity(Linear(w), torch.randn(5, 8, 2, dtype=F64), leaves=True)
    assert states.names == ("Linear, state",)
    np.testing.assert_allclose(states.norms[0], norms, rtol=1e-12)


def test_the_past_is_not_sensitive_unless_the_layer_sees_the_future() -> None:
    xs = torch.randn(1, 6, 3)
    assert not sensitivity(es.LSTM(3, 4), xs, source=3).norms[0, :3].any()
    assert sensitivity(es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4)), xs, source=3).norms[0, :3].all()


def test_what_cannot_be_measured_says_why() -> None:
    xs = torch.randn(1, 6, 3)
    both = es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4))
    with pytest.raises(
        TypeError, match=r"gradient_flow: expected a Cell, but Bidirectional is acausal.*\.forward_cell"
    ):
        gradient_flow(both, xs)
    with pytest.raises(TypeError, match="sensitivity: expected a Cell, but Bidirectional is acausal"):
        sensitivity(both, xs, leaves=True)
    with pytest.raises(ValueError, match="gradient_flow: Identity has no state"):
        gradient_flow(es.Identity(3), xs)
    with pytest.raises(ValueError, match=r"at least 2 steps are needed, but xs has 1"):
        gradient_flow(es.LSTM(3, 4), xs[:, :1])
    with pytest.raises(ValueError, match=r"lags should lie in 1 … 5 for 6 steps, but is 6"):
        gradient_flow(es.LSTM(3, 4), xs, lags=6)
    with pytest.raises(ValueError, match=r"loss should give \(batch, time\) = \(1, 6\), but gave \(1, 6, 4\)"):
        gradient_flow(es.LSTM(3, 4), xs, loss=lambda ys: ys)
    with pytest.raises(TypeError, match=r"but is torch\.int64; embed tokens first"):
        gradient_flow(es.LSTM(3, 4), torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"xs should be \(batch ≥ 1, time, 3\) for LSTM, but is \(1, 6, 2\)"):
        sensitivity(es.LSTM(3, 4), xs[..., :2])
    with pytest.raises(ValueError, match=r"source should lie in 0 … 5 for 6 steps, but is 6"):
        sensitivity(es.LSTM(3, 4), xs, source=6)


def test_a_run_that_explodes_names_the_step() -> None:
    grows = Linear(torch.eye(1) * 1e10)
    for measure in (gradient_flow, sensitivity):
        with pytest.raises(ValueError, match=r"Linear is not finite after step 4 of 9.*fewer than 4 steps"):
            measure(grows, torch.full((1, 9, 1), 1e10))


def test_flows_are_drawn_with_a_sentence(tmp_path: Path) -> None:
    flow = Flow(("h",), np.arange(5), 0.5 ** np.arange(5.0).reshape(1, 1, 5))
    assert "h: 6.2e-02 after 4 words" in draw_flow(flow, tmp_path / "deep" / "flow.png", "word")
    assert "LSTM: 6.2e-02" in draw_flow({"LSTM": flow}, tmp_path / "two.png")
    assert imread(tmp_path / "deep" / "flow.png").shape[1] == 1200
    found = sensitivity(es.Stack(es.LSTM(3, 4), es.GRU(4, 4)), torch.randn(1, 9, 3))
    assert "Left after 8 steps" in draw_sensitivity(found, tmp_path / "map.png")
    assert imread(tmp_path / "map.png").shape[1] == 1200


def test_the_task_is_to_say_the_first_symbol_when_asked() -> None:
    batch = sequences(40, 9, seed=0, cues=(5, 9))
    first = batch.xs[:, 0, :SYMBOLS]
    for step in range(9):
        asked = step in (4, 8)
        assert bool((batch.xs[:, step, -1] == float(asked)).all())
        assert torch.equal(batch.targets[:, step], first if asked else torch.zeros_like(first))
        assert batch.xs[:, step, :SYMBOLS].sum() == (0 if asked else 40)
    assert torch.equal(sequences(9, 20, seed=3).xs, sequences(9, 20, seed=3).xs)


def test_the_famous_pictures_show_what_they_claim(tmp_path: Path) -> None:
    plain, gated = Recaller(es.RNN).learn(), Recaller(es.LSTM).learn()
    assert gated.right() > 0.98
    assert plain.right() < 0.7
    faded, kept = plain.unfolded("tanh"), gated.unfolded("LSTM")
    assert faded.rows["state h"][-1] < 0.01
    assert kept.rows["memory\ncell c"].min() > 0.9
    asked = np.isin(np.arange(1, SHOWN + 1), ASKED)
    assert kept.rows["output y"][asked].min() > 0.3
    assert kept.rows["output y"][1:][~asked[1:]].max() < 0.1
    assert ((kept.gates["output"] > 0.5) == asked).all()
    assert (kept.gates["forget"] > 0.9).all()
    assert ((kept.gates["input"] > 0.5) == (np.arange(SHOWN) == 0)).all()
    xs = sequences(4, 100, seed=2).xs
    vanishing, level = (gradient_flow(m.cell, xs, lags=80, dtype=F64).mean[0] for m in (plain, gated))
    assert vanishing[80] < 1e-12 * vanishing[0]
    assert level[80] > 0.1 * level[0]


def test_one_call_draws_both_pictures_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Recaller.learn
    monkeypatch.setattr(Recaller, "learn", lambda self: learn(self, steps=3))
    once, again = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    for (path, sentence), (other, same) in zip(once, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert sentence == same
        assert imread(path).shape[1] == 1200
    assert [path.name for path, _ in once] == ["unfolded.png", "gradient-flow.png"]
