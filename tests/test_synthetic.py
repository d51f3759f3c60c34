"""Generated tasks: what is asked can be answered from what is read, a baseline is a baseline, and a seed is a seed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.lab.synthetic import (
    Adding,
    AssociativeRecall,
    BouncingBalls,
    Copying,
    CopyMemory,
    Echo,
    Lorenz,
    MackeyGlass,
    Narma,
    Predictor,
    Problem,
    TemporalOrder,
    lorenz,
    mackey_glass,
    measure,
    narma,
    objective,
)
from everstep.lab.synthetic.predictor import losses
from everstep.learn import FitSettings

PROBLEMS = [
    Adding(12),
    Adding(20, stretch=0.5),
    CopyMemory(6),
    CopyMemory(1, symbols=2, length=1),
    Copying(5),
    Copying(4, 4, bits=3),
    Echo(9, 4),
    AssociativeRecall(3),
    AssociativeRecall(5, lag=4, keys=5, values=3),
    TemporalOrder(20),
    TemporalOrder(30, symbols=3, stretch=0.1),
    Lorenz(8, horizon=3),
    MackeyGlass(5, horizon=2),
    Narma(40),
    Narma(40, order=30),
    BouncingBalls(6, size=5),
    BouncingBalls(6, balls=2, size=None),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_a_batch_depends_on_its_place_alone(problem: Problem) -> None:
    stream = problem.stream(4, seed=3, batches=7)
    assert (len(stream), stream.batch_size, stream.carries_state) == (7, 4, False)
    first = stream.batch(1, 2)
    for other in (stream.batch(1, 2), problem.batch(4, seed=3, epoch=1, index=2)):
        assert torch.equal(first.inputs, other.inputs)
        assert torch.equal(first.targets, other.targets)
    places = [{"epoch": 2, "index": 1}, {"epoch": 1, "index": 3}, {"seed": 4}, {"held_out": True}]
    for place in places:
        other = problem.batch(16, **{"seed": 3, "epoch": 1, "index": 2, **place})  # type: ignore[arg-type]
        assert not torch.equal(problem.batch(16, seed=3, epoch=1, index=2).inputs, other.inputs), place


@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_shapes(problem: Problem) -> None:
    batch = problem.batch(3)
    steps = batch.inputs.shape[1]
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.shape == (3, steps, problem.input_size)
    asked = batch.targets.shape[1]
    assert 1 <= asked <= steps
    if problem.kind == "class":
        assert batch.targets.shape == (3, asked)
        assert batch.targets.dtype == torch.int64
        assert 0 <= int(batch.targets.min()) <= int(batch.targets.max()) < problem.outputs
    else:
        assert batch.targets.shape == (3, asked, problem.outputs)
    assert batch.count == 3 * asked
    if batch.lengths is not None:
        assert int(batch.lengths.min()) >= asked


@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_the_baseline_is_what_the_best_constant_answer_has(problem: Problem) -> None:
    targets = problem.batch(2000 if problem.input_size < 20 else 500, held_out=True).targets
    if isinstance(problem, CopyMemory):  # blanks are known, and so is where they are
        nats = problem.length * math.log(problem.symbols) / targets.shape[1]
        assert problem.baseline == pytest.approx(nats)
        return
    if problem.kind == "class":
        assert problem.baseline == math.log(problem.outputs)
        shares = torch.bincount(targets.flatten(), minlength=problem.outputs) / targets.numel()
        assert shares.tolist() == pytest.approx([1 / problem.outputs] * problem.outputs, abs=0.05)
    elif problem.kind == "bits":
        assert problem.baseline == problem.outputs * math.log(2)
        assert targets.unique().tolist() == [0, 1]
        assert targets.mean((0, 1)).tolist() == pytest.approx([0.5] * problem.outputs, abs=0.05)
    else:
        variance = float(targets.flatten(0, 1).var(0, unbiased=False).mean())
        assert problem.baseline == pytest.approx(variance, rel=0.1)


def test_copying() -> None:
    problem, lengths = Copying(4, 2, bits=3), set()
    for index in range(30):
        batch = problem.batch(2, index=index)
        length = batch.targets.shape[1]
        lengths.add(length)
        assert batch.inputs.shape == (2, 2 * length + 1, 4)
        assert torch.equal(batch.inputs[:, :length, :3], batch.targets)
        assert torch.equal(batch.inputs[..., 3], torch.eye(2 * length + 1)[length].expand(2, -1))
        assert not batch.inputs[:, length:, :3].any()
    assert lengths == {2, 3, 4}


def test_adding() -> None:
    batch = Adding(11, stretch=0.5).batch(500)
    values, markers = batch.inputs.unbind(2)
    assert torch.equal(markers.sum(1), torch.full((500,), 2.0))
    assert torch.equal(markers[:, :5].sum(1), torch.ones(500))
    assert torch.equal(markers[:, 11:], torch.zeros(500, 5))
    assert torch.allclose((values * markers).sum(1), batch.targets[:, 0, 0])
    assert batch.lengths is not None
    assert set(batch.lengths.tolist()) == set(range(11, 17))
    assert 0 <= float(values.min()) < 0.01 < 0.99 < float(values.max()) < 1
    assert Adding(2).batch(5).targets.flatten().tolist() == pytest.approx(
        Adding(2).batch(5).inputs[..., 0].sum(1).tolist()
    )
    assert Adding(10).baseline == pytest.approx(0.1667, abs=1e-4)


def test_copy_memory() -> None:
    problem = CopyMemory(7)
    batch = problem.batch(20)
    read = batch.inputs.argmax(2)
    assert torch.equal(batch.inputs.sum(2), torch.ones(20, 27))
    assert torch.equal(read[:, :10], batch.targets[:, -10:])
    assert int(read[:, :10].max()) == 7
    rest = read[:, 10:].tolist()
    assert all(row == [8] * 6 + [9] + [8] * 10 for row in rest)
    assert torch.equal(batch.targets[:, :17], torch.full((20, 17), 8))
    assert CopyMemory(200).baseline == pytest.approx(10 * math.log(8) / 220)


def test_echo_and_recall() -> None:
    batch = Echo(9, 4).batch(6)
    read = batch.inputs.argmax(2)
    for j in range(5):  # target j is asked for at step 4 + j
        assert torch.equal(batch.targets[:, j], read[:, 4 + j - 4])
    problem = AssociativeRecall(pairs=5, lag=2, keys=5, values=3)
    batch = problem.batch(30)
    for row, answer in zip(batch.inputs.argmax(2).tolist(), batch.targets[:, 0].tolist(), strict=True):
        keys, values = row[0:10:2], row[1:10:2]
        assert sorted(keys) == [0, 1, 2, 3, 4]
        assert row[10:13] == [8, 8, 9]
        assert values[keys.index(row[13])] == answer + 5


@pytest.mark.parametrize(("symbols", "spans"), [(2, [(10, 20), (50, 60)]), (3, [(10, 20), (33, 43), (66, 76)])])
def test_temporal_order(symbols: int, spans: list[tuple[int, int]]) -> None:
    batch = TemporalOrder(100, symbols=symbols, stretch=0.1).batch(400)
    seen: list[set[int]] = [set() for _ in spans]
    assert batch.lengths is not None
    for row, length, answer in zip(batch.inputs.argmax(2).tolist(), batch.lengths, batch.targets[:, 0], strict=True):
        assert (row[0], row[length - 1]) == (6, 7)
        assert 100 <= length <= 110
        places = [t for t, letter in enumerate(row) if letter in (4, 5)]
        assert [row[t] - 4 for t in places] == [int(bit) for bit in f"{int(answer):0{symbols}b}"]
        for span, t in zip(seen, places, strict=True):
            span.add(t)
    for span, (low, high) in zip(seen, spans, strict=True):
        assert (min(span), max(span)) == (low, high)


def test_mackey_glass_is_the_series_of_its_recipe(shared_data: Path) -> None:
    path = shared_data / "mackey_glass" / "mackey_glass_tau17.csv"
    if not path.is_file():
        pytest.skip("the series is not there")
    series = np.loadtxt(path)
    assert np.abs(mackey_glass(1000) - series[:1000]).max() < 2e-7  # written with eight digits, and chaotic


def test_mackey_glass_solves_its_equation() -> None:
    for tau, discard in ((17.0, 0), (3.0, 10)):
        fine = mackey_glass(400, tau, sample=0.1, discard=discard)
        slope = (fine[202:] - fine[200:-2]) / 0.2
        old = fine[201 - round(10 * tau) : -1 - round(10 * tau)]
        assert np.abs(slope - (0.2 * old / (1 + old**10) - 0.1 * fine[201:-1])).max() < 2e-3
    coarse, fine = (mackey_glass(30, step=step, discard=0) for step in (0.1, 0.05))
    assert np.abs(coarse - fine).max() < 1e-5
    both = mackey_glass(20, history=np.array([0.7, 1.2]), discard=5)
    assert np.allclose(both[1], mackey_glass(20, discard=5), rtol=0, atol=1e-14)


def test_lorenz_is_of_the_fourth_order() -> None:
    exact = lorenz(1, 0.0005, discard=399)[0]
    errors = [np.abs(lorenz(1, dt, discard=round(0.2 / dt) - 1)[0] - exact).max() for dt in (0.01, 0.005)]
    assert 10 < errors[0] / errors[1] < 25  # 2⁴ = 16
    fixed = math.sqrt(8 / 3 * 27)
    assert lorenz(5, start=(fixed, fixed, 27.0)) == pytest.approx(np.array([[fixed, fixed, 27.0]] * 5))
    spread = lorenz(20_000, discard=1000)
    standard = Lorenz(300).batch(100).inputs.flatten(0, 1)
    assert standard.mean(0).tolist() == pytest.approx([0, 0, 0], abs=0.1)
    assert standard.std(0).tolist() == pytest.approx([1, 1, 1], abs=0.1)
    assert spread.std(0) == pytest.approx([7.92, 9.01, 8.62], rel=0.05)


@pytest.mark.parametrize("problem", [Lorenz(9, horizon=4), MackeyGlass(9, horizon=4), BouncingBalls(9, size=4)])
def test_what_is_asked_for_is_read_later(problem: Problem) -> None:
    batch = problem.batch(2)
    ahead = getattr(problem, "horizon", 1)
    assert torch.equal(batch.targets[:, :-ahead], batch.inputs[:, ahead:])


@pytest.mark.parametrize(("order", "a", "b", "c", "d"), [(10, 0.3, 0.05, 1.5, 0.1), (30, 0.2, 0.04, 1.5, 0.001)])
def test_narma_is_its_recurrence(order: int, a: float, b: float, c: float, d: float) -> None:
    inputs = np.random.default_rng(0).uniform(0, 0.5, (1, 80))
    u, y = inputs[0], [0.0]
    for t in range(80):
        window = sum(y[t - i] for i in range(order) if t - i >= 0)
        late = u[t - order + 1] if t >= order - 1 else 0.0
        y.append(a * y[t] + b * y[t] * window + c * late * u[t] + d)
    assert narma(inputs, order)[0] == pytest.approx(y[1:], rel=1e-12)
    assert float(Narma(400, order).batch(200).targets.abs().max()) <= 2


def test_balls_stay_in_the_box_and_keep_their_energy() -> None:
    problem = BouncingBalls(60, balls=3, size=None, radius=0.12)
    batch = problem.batch(60)
    places = ((torch.cat([batch.inputs, batch.targets[:, -1:]], 1) + 1) / 2).view(60, 61, 3, 2)
    assert float(places.min()) >= 0.12 - 1e-6
    assert float(places.max()) <= 0.88 + 1e-6
    apart = torch.stack([places[:, :, a] - places[:, :, b] for a, b in ((0, 1), (0, 2), (1, 2))]).norm(dim=-1)
    assert float(apart.min()) > 2 * 0.12 - 0.05
    speeds = places.diff(dim=1)
    free = ((places[:, 1:] > 0.18) & (places[:, 1:] < 0.82)).all(-1).all(-1) & (apart.amin(0)[:, 1:] > 0.36)
    free = free[:, 1:] & free[:, :-1]
    energy = speeds[:, 1:].square().sum((2, 3))[free]
    assert len(energy) > 50
    assert torch.allclose(energy, torch.full_like(energy, 3 * 0.05**2), rtol=1e-3)
    assert Counter((speeds[:, 1:] * speeds[:, :-1] < 0).flatten().tolist())[True] > 50  # they do bounce


def test_a_frame_shows_the_ball() -> None:
    film, path = (BouncingBalls(5, size=size).batch(4) for size in (20, None))
    places = (path.inputs + 1) / 2
    weights = film.inputs.view(4, 5, 20, 20)
    pixels = (torch.arange(20) + 0.5) / 20
    for axis, line in ((0, weights.sum(2)), (1, weights.sum(3))):
        centre = (line * pixels).sum(2) / line.sum(2)
        assert torch.allclose(centre, places[..., axis], atol=0.01)
    assert 0.9 < float(film.inputs.max()) <= 1


WRONG = [
    (lambda: Adding(1), "Adding: two markers need at least 2 steps, but steps is 1"),
    (lambda: Adding(2.5), "Adding: steps should be a whole number ≥ 2, but is 2.5"),  # type: ignore[arg-type]
    (lambda: Adding(5, stretch=-1), "Adding: stretch should be a number ≥ 0"),
    (lambda: CopyMemory(0), "CopyMemory: lag should be a whole number ≥ 1, but is 0"),
    (lambda: CopyMemory(5, symbols=1), "CopyMemory: symbols should be a whole number ≥ 2"),
    (lambda: Echo(5, 5), "Echo: the lag should be shorter than the sequence, but is 5 of 5 steps"),
    (lambda: Echo(5, 0), "Echo: lag should be a whole number ≥ 1"),
    (lambda: AssociativeRecall(27), "AssociativeRecall: 27 pairs need as many keys, but there are 26"),
    (lambda: TemporalOrder(9), "TemporalOrder: steps should be a whole number ≥ 10, but is 9"),
    (lambda: TemporalOrder(50, symbols=4), "TemporalOrder: symbols should be 2 or 3, but is 4"),
    (lambda: Lorenz(5, dt=0.5), "Lorenz: dt should be in"),
    (lambda: lorenz(5, dt=0), "lorenz: dt should be in"),
    (lambda: lorenz(0), "lorenz: count should be ≥ 1"),
    (lambda: mackey_glass(0), "mackey_glass: count should be ≥ 1"),
    (lambda: mackey_glass(5, tau=17.03), r"mackey_glass: tau should be a multiple of step=0.1, but is 17.03"),
    (lambda: MackeyGlass(5, tau=-1), "mackey_glass: tau should be a multiple"),
    (lambda: Narma(5, order=20), "Narma: order should be 10 or 30, but is 20"),
    (lambda: narma(np.zeros((1, 5)), 20), "narma: order should be 10 or 30, but is 20"),
    (lambda: BouncingBalls(5, balls=6), "BouncingBalls: 6 balls of radius 0.15 are too many"),
    (lambda: BouncingBalls(5, size=0), "BouncingBalls: size should be a whole number ≥ 1"),
    (lambda: Predictor(es.GRU(3, 4), Adding(5)), "Predictor: Adding has 2 features, but GRU takes 3"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_padding_is_not_read() -> None:
    problem = TemporalOrder(20, stretch=0.5)
    batch, model = problem.batch(6), Predictor(es.GRU(8, 4), problem)
    assert batch.lengths is not None
    for row, length in enumerate(batch.lengths.tolist()):
        ys, _ = model.layer(batch.inputs[row : row + 1, :length])
        assert torch.allclose(model(batch)[row, 0], model.answer(ys[0, -1]), atol=1e-6)


@pytest.mark.parametrize("problem", [Adding(6), Echo(7, 3), TemporalOrder(12, stretch=0.5)], ids=repr)
def test_the_objective_is_the_loss_that_is_measured(problem: Problem) -> None:
    model = Predictor(es.GRU(problem.input_size, 4), problem)
    batch = problem.batch(30, index=0, held_out=True)
    (loss,) = objective(model, batch, None)
    assert torch.equal(loss.total, loss.reported)
    assert (loss.total.requires_grad, loss.reported.requires_grad) == (True, False)
    score = measure(model, 30, chunk=30)
    assert score.loss == pytest.approx(float(loss.reported.sum()) / batch.count, rel=1e-5)
    assert score.relative == pytest.approx(score.loss / problem.baseline)
    answers = model(batch).detach()
    if problem.kind == "class":
        wrong = (answers.argmax(-1) != batch.targets).float().mean()
        assert score.error == pytest.approx(float(wrong))
        direct = -answers.log_softmax(-1).gather(-1, batch.targets[..., None]).mean()
    elif problem.kind == "bits":
        assert score.error == pytest.approx(float(((answers > 0) != batch.targets.bool()).float().mean()))
        signs = 2 * batch.targets - 1
        direct = -torch.nn.functional.logsigmoid(signs * answers).sum(-1).mean()
    else:
        assert score.error == score.loss
        direct = (answers - batch.targets).square().mean()
    assert float(losses(model, batch, answers).mean()) == pytest.approx(float(direct), rel=1e-5)


def test_only_the_copied_symbols_are_judged() -> None:
    problem = CopyMemory(5)

    class Blanks(es.Cell):
        def initial_state(self, batch: int, like: Tensor) -> tuple[()]:
            return ()

        def step(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
            return x, state

    model = Predictor(Blanks(10, 10), problem)
    with torch.no_grad():  # always the blank, and among the symbols none more than another
        model.answer.weight.zero_()
        model.answer.bias.copy_(torch.tensor([0.0] * 8 + [20.0]))
    score = measure(model, 50)
    assert score.error == 1
    assert model.training


def test_a_gated_network_learns_to_add_what_lies_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    problem = Adding(10)
    model = Predictor(es.GRU(2, 24), problem)
    before = measure(model, 300)
    settings = FitSettings(max_steps=500, learning_rate=1e-2, schedule="constant", precision="float32")
    es.fit(model, objective, problem.stream(32), settings, out=tmp_path, log=lambda line: None)
    after = measure(model, 300)
    assert after.error < 0.01 < 0.15 < before.error
