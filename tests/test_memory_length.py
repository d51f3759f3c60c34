"""Effective memory length, by both definitions, where it is known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor
from untrained import untrained

import everstep as es
from everstep.errors import DataError
from everstep.look.flow import Flow, gradient_flow
from everstep.look.memory import context_change, context_loss, draw_context, memory_by_gradient
from everstep.look.over_passages import memory_pictures
from everstep.runs.pictures import draw_over
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run


class Leaky(es.Affine):
    """h_t = a h_{t-1} + (1 − a) x_t."""

    def __init__(self, a: float):
        super().__init__(1, 1)
        self.a = a

    def coefficients(self, x):
        return torch.full_like(x, self.a), (1 - self.a) * x


@pytest.mark.parametrize("tau", [3.0, 10.0, 25.0])
def test_a_leaky_cell_remembers_its_time_constant(tau: float) -> None:
    a = math.exp(-1 / tau)
    xs = torch.ones(1, 1500, 1, dtype=torch.float64)
    flow = gradient_flow(Leaky(a), xs[:, :200], lags=150)
    # a^k ≤ e^−1 first where k ≥ τ, and ≤ 1/100 where k ≥ τ ln 100
    assert memory_by_gradient(flow, math.exp(-1) * (1 + 1e-9)) == {"Leaky": math.ceil(tau)}
    assert memory_by_gradient(flow, 0.01) == {"Leaky": math.ceil(tau * math.log(100))}
    # of a constant 1 the last n inputs make 1 − a^n
    curve = context_change(Leaky(a), xs, longest=150)
    np.testing.assert_allclose(curve.values, a ** np.arange(1, 151), rtol=1e-9, atol=1e-12)
    assert curve.memory(0.01) == math.ceil(tau * math.log(100))


@pytest.mark.parametrize("k", [1, 2, 7])
def test_a_window_remembers_what_it_holds(k: int) -> None:
    curve = context_change(es.Window(2, k), torch.randn(1, 60, 2), longest=12)
    assert curve.memory() == k
    assert not curve.values[k - 1 :].any()


def test_a_stretch_is_a_run_from_the_start() -> None:
    """Each n as a plain loop over targets would have it."""
    torch.manual_seed(0)
    cell = es.Stack(es.GRU(3, 4), es.LSTM(4, 5)).double()
    xs, targets = torch.randn(1, 20, 3, dtype=torch.float64), torch.arange(20)[None]

    def loss(ys: Tensor, aims: Tensor) -> Tensor:
        return ys.square().sum(-1) * (1 + aims)

    curve = context_loss(cell, xs, targets, loss, longest=8, samples=5)
    places = range(15, 20)
    for n in range(1, 9):
        alone = [loss(cell(xs[:, t - n + 1 : t + 1])[0][:, -1:], targets[:, t : t + 1]).item() for t in places]
        assert curve.values[n - 1] == pytest.approx(np.mean(alone), rel=1e-10)
    full = loss(cell(xs)[0], targets)[0, 15:].mean().item()
    assert curve.full == pytest.approx(full, rel=1e-10)


def test_long_runs_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs = es.GRU(3, 4), torch.randn(1, 40, 3)
    whole = context_change(cell, xs, longest=15).values
    monkeypatch.setattr("everstep.look.memory.HELD", 4 * 39 * 4)
    np.testing.assert_allclose(context_change(cell, xs, longest=15).values, whole, rtol=1e-4, atol=1e-7)


def test_what_never_comes_near_is_longer_than_was_measured() -> None:
    xs = torch.ones(1, 60, 1)
    assert context_change(Leaky(0.99), xs, longest=20).memory() == math.inf
    flow = gradient_flow(Leaky(0.99), xs, lags=20)
    assert memory_by_gradient(flow) == {"Leaky": math.inf}


def test_one_close_value_on_the_way_is_not_enough() -> None:
    curve = context_change(es.Window(1, 3), torch.randn(1, 30, 1), longest=6)
    bumpy = type(curve)(curve.lengths, np.array([1.0, 0.005, 0.5, 0.009, 0.0, 0.0]), 0.0, 1.0, 24)
    assert bumpy.memory() == 4


def test_bad_calls_say_what_is_wrong() -> None:
    cell, xs = es.GRU(3, 4), torch.randn(1, 10, 3)
    with pytest.raises(TypeError, match="context_change: expected a Cell, but Bidirectional is acausal"):
        context_change(es.Bidirectional(es.GRU(3, 4), es.GRU(3, 4)), xs, longest=2)
    with pytest.raises(ValueError, match=r"longest should lie in 1 … 9 for 10 steps, but is 10"):
        context_change(cell, xs, longest=10)
    with pytest.raises(ValueError, match="one row is expected, but xs has 2"):
        context_change(cell, xs.repeat(2, 1, 1), longest=2)
    with pytest.raises(ValueError, match=r"at least 2 steps are needed, but xs has 1"):
        context_change(cell, xs[:, :1], longest=1)
    with pytest.raises(ValueError, match=r"targets should have the shape \(1, 10\).*but have \(10,\)"):
        context_loss(cell, xs, torch.zeros(10), lambda ys, _: ys.sum(-1), longest=2)
    with pytest.raises(ValueError, match=r"loss should give \(1, 8\), but gave \(1, 8, 4\)"):
        context_loss(cell, xs, torch.zeros(1, 10), lambda ys, _: ys, longest=2)
    with pytest.raises(ValueError, match="a loss or an output is not finite"):
        context_loss(cell, xs, torch.zeros(1, 10), lambda ys, _: ys.sum(-1) / 0, longest=2)
    flow = Flow(("h",), np.arange(3), np.zeros((1, 1, 3)))
    with pytest.raises(ValueError, match="reads nothing of h at lag 0"):
        memory_by_gradient(flow)
    with pytest.raises(ValueError, match="fraction should lie between 0 and 1, but is 1"):
        memory_by_gradient(flow, 1)


def test_a_curve_is_drawn_with_a_sentence(tmp_path: Path) -> None:
    curve = context_change(es.Window(2, 5), torch.randn(1, 40, 2), longest=20)
    sentence = draw_context(curve, tmp_path / "context.png", "word", "change of the output")
    assert "Effective memory by context, to within 1 %: 5 words" in sentence
    assert imread(tmp_path / "context.png").shape[1] == 1200
    far = context_change(Leaky(0.99), torch.ones(1, 60, 1), longest=20)
    assert "more than 20 steps" in draw_context(far, tmp_path / "far.png")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An untrained model of two layers."""
    torch.manual_seed(0)
    sizes = ["model.embedding_size=6", "model.hidden_size=8", "model.layers=2"]
    return untrained(tmp_path, "shakespeare-minute", *sizes)


def test_a_run_is_drawn_with_sentences(run: Run, tmp_path: Path) -> None:
    found = draw_over(memory_pictures, run, tmp_path / "pictures")
    names = ["gradient-flow", "sensitivity", "spectrum", "matrices", "memory"]
    assert [path.name for path, _ in found] == [f"{name}.png" for name in names]
    assert all(imread(path).shape[1] == 1200 for path, _ in found)
    flow, sensitivity, spectrum, matrices, memory = (sentence for _, sentence in found)
    assert "Effective memory by gradient (1 % left), in characters: layer 1 LSTM " in flow
    assert "after 59 characters" in sensitivity
    assert "Largest Lyapunov exponent -" in spectrum
    assert matrices.startswith("The top layer's matrices. ")
    assert "W_hi " in matrices
    assert "Effective memory by context, to within 1 %: " in memory


def test_a_gradient_is_followed_below_what_float32_holds(run: Run, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in run.model.body.parameters():
            parameter.mul_(0.01)
            if parameter.dim() == 1:
                parameter[8:16] -= 2  # of two biases: the forget gates leave σ(−4) = 0.018 of c at each step
    sentence = draw_over(memory_pictures, run, tmp_path)[0][1]
    left = [float(number) for number in re.findall(r": (\S+) after 100 characters", sentence)]
    assert len(left) == 2
    assert all(0 < share < 1e-100 for share in left), left


def test_the_context_curve_of_a_run_ends_at_its_own_score(run: Run) -> None:
    text = "All the world's a stage,\nAnd all the men and women merely players.\n" * 3
    found = run.passage(text, len(text))
    bits = [bits for _, bits in found.pairs]
    inputs, targets = found.inputs[None, :-1], found.targets[None]
    curve = context_loss(found.body, inputs, targets, found.loss, longest=20, samples=50)
    assert curve.full == pytest.approx(np.mean(bits[-50:]) * math.log(2), rel=1e-4)


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("text", ["ab", "abc\nd", "To be, or not to be\n" * 9])
def test_a_short_text_is_enough(run: Run, tmp_path: Path, text: str) -> None:
    assert len(draw_over(memory_pictures, run, tmp_path / "pictures", text)) == 5


def test_a_text_of_one_token_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"look: the text has 1 token; gradients need two.*Give a longer --text"):
        draw_over(memory_pictures, run, tmp_path / "pictures", "a")
    with pytest.raises(DataError, match="the passage is empty"):
        draw_over(memory_pictures, run, tmp_path / "pictures", "")


def test_a_run_whose_text_is_gone_says_so(run: Run, tmp_path: Path) -> None:
    gone = load_task("shakespeare-minute", [f"data.train={tmp_path / 'gone'}"])
    gone.tokenizer = run.task.tokenizer
    with pytest.raises(DataError, match="gone"):
        draw_over(memory_pictures, Run(tmp_path, gone, run.model), tmp_path / "pictures")
