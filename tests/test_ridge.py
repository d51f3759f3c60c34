"""Read-outs in closed form, step by step and in a closed loop; and the echo state network made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import everstep as es
from everstep.learn.linear import echo_state
from everstep.learn.linear import ridge as ridge_module

pytestmark = pytest.mark.usefixtures("as_shipped")

F64 = torch.float64


def data(steps: int, size: int, outputs: int = 2) -> tuple[Tensor, Tensor]:
    features = torch.randn(steps, size, dtype=F64) + 3
    return features, features @ torch.randn(size, outputs, dtype=F64) + torch.randn(steps, outputs, dtype=F64) + 1


def by_numpy(features: Tensor, targets: Tensor, ridge: float, intercept: bool = True) -> tuple[Tensor, Tensor]:
    """Least squares with the penalty as more rows; the last column, of ones, has no penalty."""
    h, y = features.numpy(), targets.numpy()
    size = h.shape[1]
    above = np.hstack([h, np.full((len(h), 1), float(intercept))])
    below = np.hstack([math.sqrt(ridge) * np.eye(size), np.zeros((size, 1))])
    found = np.linalg.lstsq(np.vstack([above, below]), np.vstack([y, np.zeros((size, y.shape[1]))]), rcond=None)[0]
    return torch.from_numpy(found[:-1].T), torch.from_numpy(found[-1])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-16, 1e-12, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("steps", "size"), [(80, 7), (8, 7), (7, 7), (5, 7), (1, 7)])
def test_ridge_is_the_least_squares_solution(steps: int, size: int, ridge: float, intercept: bool) -> None:
    features, targets = data(steps, size)
    regression = es.Ridge(intercept=intercept)
    regression.add(features, targets)
    for got, want in zip(regression.solve(ridge), by_numpy(features, targets, ridge, intercept), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


def test_a_penalty_below_rounding_of_the_products_still_works() -> None:
    """Singular values from 1 to 1e-9: their squares are beyond float64, they are not."""
    left, _ = torch.linalg.qr(torch.randn(400, 10, dtype=F64))
    features = left * torch.logspace(0, -9, 10, dtype=F64) @ torch.linalg.qr(torch.randn(10, 10, dtype=F64))[0]
    targets = features @ torch.randn(10, 2, dtype=F64)
    for pieces in (400, 9):
        regression = es.Ridge(intercept=False)
        for h, y in zip(features.split(pieces), targets.split(pieces), strict=True):
            regression.add(h, y)
        for ridge in (1e-19, 0.0):
            weight, _ = regression.solve(ridge)
            assert (features @ weight.t() - targets).norm() < 1e-9 * targets.norm()
            want, _ = by_numpy(features, targets, ridge, intercept=False)
            torch.testing.assert_close(weight, want, rtol=0, atol=1e-5)


def test_a_penalty_that_matters_to_nothing_costs_no_digits() -> None:
    """κ² is 1e10 here: the normal equations alone would leave six digits."""
    left, _ = torch.linalg.qr(torch.randn(400, 10, dtype=F64))
    features = left * torch.logspace(0, -5, 10, dtype=F64) @ torch.linalg.qr(torch.randn(10, 10, dtype=F64))[0]
    weight = torch.randn(2, 10, dtype=F64)
    regression = es.Ridge(intercept=False)
    regression.add(features, features @ weight.t())
    torch.testing.assert_close(regression.solve(1e-28)[0], weight, rtol=0, atol=1e-9)


def in_long_double(features: Tensor, targets: Tensor, ridge: float) -> np.ndarray:
    """W by Householder's QR of [H; √λ I], about the means, with 11 more bits."""
    h, y = (v.numpy().astype(np.longdouble) for v in (features, targets))
    size = h.shape[1]
    above = np.hstack([h - h.mean(0), y - y.mean(0)])
    below = np.hstack([np.sqrt(np.longdouble(ridge)) * np.eye(size), np.zeros((size, y.shape[1]))])
    rows = np.vstack([above, below])
    for k in range(size):
        v = rows[k:, k].copy()
        v[0] += np.copysign(np.sqrt(v @ v), v[0])
        rows[k:, k:] -= 2 / (v @ v) * np.outer(v, v @ rows[k:, k:])
    weight = np.zeros((size, y.shape[1]), np.longdouble)
    for k in reversed(range(size)):
        weight[k] = (rows[k, size:] - rows[k, k + 1 : size] @ weight[k + 1 :]) / rows[k, k]
    return weight.T


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long double is no longer than float64 here")
@pytest.mark.parametrize("share", [1e-6, 1e-9, 1e-12, 3e-15])
@pytest.mark.parametrize("steps", [300, 60], ids=["tall", "wide"])
def test_the_normal_equations_are_as_exact_as_qr(steps: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a reservoir's features, whose singular values fall to rounding, neither weights nor predictions are worse."""
    features = reservoir(1, 80)(sines(steps + 100))[0][0, 100:]
    targets = torch.cat([sines(steps + 101)[0, 101:], 1e-6 * torch.randn(steps, 1, dtype=F64)], 1)
    about = features - features.mean(0)
    ridge = share * float(about.square().sum())
    regression = es.Ridge()
    regression.add(features, targets)
    with monkeypatch.context() as by_qr:
        by_qr.setattr(ridge_module, "_SAFE", math.inf)
        slow = regression.solve(ridge)[0].numpy()
    monkeypatch.setattr(torch.linalg, "qr", None)
    quick = regression.solve(ridge)[0].numpy()
    want = in_long_double(features, targets, ridge)
    for basis in (np.eye(80), about.numpy().T):  # the weights themselves, and what they predict
        size = np.linalg.norm(want @ basis, axis=1)
        wrong, least = (np.linalg.norm((w - want) @ basis, axis=1) / size for w in (quick, slow))
        assert (wrong <= 3 * least + 1e-14).all()


@pytest.mark.parametrize("steps", [300, 60], ids=["tall", "wide"])
def test_corrections_mend_wrong_products_or_qr_solves(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = reservoir(1, 80)(sines(steps))[0][0], torch.randn(steps, 2, dtype=F64)
    targets[:, 1] = 0
    regression = es.Ridge()
    regression.add(features, targets)
    want, exact, qr = regression.solve(1e-4)[0], ridge_module._products, torch.linalg.qr
    solved: list[bool] = []
    monkeypatch.setattr(torch.linalg, "qr", lambda *a, **k: (solved.append(True), qr(*a, **k))[1])
    for factor, by_qr in ((1.01, False), (0.3, True), (-1.0, True)):  # mended; never converges; no Cholesky factor
        solved.clear()
        monkeypatch.setattr(ridge_module, "_products", lambda matrix, f=factor: f * exact(matrix))
        torch.testing.assert_close(regression.solve(1e-4)[0], want, rtol=0, atol=1e-9 * float(want.norm()))
        assert bool(solved) == by_qr


def test_without_penalty_it_is_exact() -> None:
    features, _ = data(50, 6)
    weight = torch.randn(2, 6, dtype=F64)
    regression = es.Ridge()
    regression.add(features, features @ weight.t() + 5)
    got, bias = regression.solve(0)
    torch.testing.assert_close(got, weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(bias, torch.full((2,), 5.0, dtype=F64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pieces", [[100], [3, 97], [1] * 100, [0, 40, 0, 60], [12, 1, 87]])
def test_pieces_equal_the_whole(pieces: list[int]) -> None:
    features, targets = data(100, 12)
    features = features + 1e4  # sums that are not about means would lose eight digits
    whole, parts = es.Ridge(), es.Ridge()
    whole.add(features, targets)
    for h, y in zip(features.split(pieces), targets.split(pieces), strict=True):
        parts.add(h, y)
    for got, want in zip(parts.solve(0.1), whole.solve(0.1), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-8)
    assert parts.solve(10.0)[0].norm() < parts.solve(0.1)[0].norm()


def test_memory_does_not_grow_with_steps() -> None:
    regression = es.Ridge()

    for _ in range(50):
        regression.add(*data(10, 20))
        assert sum(rows.numel() for rows in regression._rows) <= 3 * 23**2
    assert regression.steps == 500


def test_an_intercept_is_not_penalised() -> None:
    features, targets = data(60, 3)
    regression = es.Ridge()
    regression.add(features, targets)
    weight, bias = regression.solve(1e9)
    assert weight.abs().max() < 1e-5
    torch.testing.assert_close(bias, targets.mean(0), rtol=1e-4, atol=1e-4)


def test_singular_data_is_an_error_that_names_the_rank() -> None:
    features, targets = data(60, 5)
    twice = torch.cat([features, features[:, :2]], 1)
    constant = torch.cat([features, torch.ones(60, 1, dtype=F64)], 1)  # the intercept has its part already
    dead = torch.cat([features, torch.zeros(60, 1, dtype=F64)], 1)
    few = features[:4]  # three directions after the mean
    for h, rank, size in ((twice, 5, 7), (constant, 5, 6), (dead, 5, 6), (few, 3, 5), (torch.zeros(9, 2), 0, 2)):
        regression = es.Ridge()
        regression.add(h, targets[: len(h)])
        with pytest.raises(ValueError, match=rf"singular: rank {rank} of {size} features.*give ridge > 0"):
            regression.solve(0)
        weight, _ = regression.solve(1e-3)
        assert torch.isfinite(weight).all()
    regression = es.Ridge()
    regression.add(twice, targets)
    with pytest.raises(ValueError, match="ridge=1e-30 is lost in rounding, give more"):
        regression.solve(1e-30)


def test_ridge_refuses() -> None:
    regression = es.Ridge()
    with pytest.raises(ValueError, match="add steps first"):
        regression.solve(1)
    regression.add(*data(4, 3))
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="ridge should be a finite number of at least 0"):
            regression.solve(wrong)
    with pytest.raises(ValueError, match=r"\(3, 2\) features and outputs, as before.*\(4, 5\)"):
        regression.add(*data(4, 5))
    with pytest.raises(ValueError, match=r"features \(steps, H\).*\(4, 3\) and \(2, 2\)"):
        regression.add(data(4, 3)[0], data(2, 3)[1])
    features, targets = data(6, 3)
    features[2, 1] = math.nan
    with pytest.raises(ValueError, match="features should be finite, but nan is at step 6, feature 1"):
        regression.add(features, targets)
    targets[5, 0] = math.inf
    with pytest.raises(ValueError, match="targets should be finite, but inf is at step 9, output 0"):
        regression.add(data(6, 3)[0], targets)
    assert regression.steps == 4


# ----------------------------------------------------------------------------------------------------- step by step


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
def test_recursive_least_squares_is_ridge(ridge: float) -> None:
    features, targets = data(200, 12)
    regression, rls = es.Ridge(intercept=False), es.RecursiveLeastSquares(12, 2, ridge=ridge)
    for step, (h, y) in enumerate(zip(features, targets, strict=True), 1):
        before = rls.weight.clone()
        torch.testing.assert_close(rls.update(h, y), y - before @ h)
        regression.add(h[None], y[None])
        if step in (1, 5, 12, 13, 200):
            torch.testing.assert_close(rls.weight, regression.solve(ridge)[0], rtol=0, atol=1e-8)
    inverse = torch.linalg.inv(features.t() @ features + ridge * torch.eye(12, dtype=F64))
    torch.testing.assert_close(rls.inverse, inverse, rtol=0, atol=1e-10)


def test_forgetting_weighs_the_past_down() -> None:
    features, targets = data(60, 4)
    rls = es.RecursiveLeastSquares(4, 2, ridge=0.5, forgetting=0.9)
    for h, y in zip(features, targets, strict=True):
        rls.update(h, y)
    weights = 0.9 ** torch.arange(59, -1, -1, dtype=F64)
    gram = features.t() @ (weights[:, None] * features) + 0.9**60 * 0.5 * torch.eye(4, dtype=F64)
    want = torch.linalg.solve(gram, features.t() @ (weights[:, None] * targets)).t()
    torch.testing.assert_close(rls.weight, want, rtol=0, atol=1e-8)


def test_recursive_least_squares_refuses() -> None:
    for options, message in (
        ({"ridge": 0.0}, "above 0"),
        ({"forgetting": 1.1}, r"\(0, 1\]"),
        ({"forgetting": 0.0}, "but is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            es.RecursiveLeastSquares(3, 1, **options)
    with pytest.raises(ValueError, match="features should be finite, but nan is at feature 1"):
        es.RecursiveLeastSquares(2, 1).update(torch.tensor([0.0, math.nan]), torch.zeros(1))


# ------------------------------------------------------------------------------------------------ echo state networks


def reservoir(inputs: int, units: int = 40, **options: object) -> es.Reservoir:
    return es.Reservoir(inputs, units, seed=1, dtype=F64, **{"leak": 0.6, "input_scaling": 1.0, **options})


def sines(steps: int, rows: int = 1) -> Tensor:
    t = torch.arange(steps, dtype=F64) + 7 * torch.arange(rows, dtype=F64)[:, None]
    return (torch.sin(t / 4) + 0.6 * torch.sin(t / 4 * math.sqrt(2)))[..., None]


def test_fit_is_ridge_on_the_steps_after_the_washout(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, lengths = reservoir(1), torch.tensor([90, 0, 25, 20])
    xs, targets = sines(90, 4), torch.randn(4, 90, 2, dtype=F64)
    pairs = [(row, t) for row, n in enumerate(lengths.tolist()) for t in range(20, n)]
    hs = cell(xs)[0]
    features, wanted = (torch.stack([v[row, t] for row, t in pairs]) for v in (hs, targets))
    weight, bias = by_numpy(features, wanted, 0.1)
    for chunk in (1000, 13):
        monkeypatch.setattr(echo_state, "CHUNK", chunk)
        hidden = torch.where(torch.arange(90)[:, None] < lengths[:, None, None], xs, torch.nan)
        model = es.EchoState(cell, 2).fit(hidden, targets, lengths=lengths, washout=20, ridge=0.1)
        torch.testing.assert_close(model.readout.weight.detach(), weight, rtol=0, atol=1e-8)
        torch.testing.assert_close(model.readout.bias.detach(), bias, rtol=0, atol=1e-8)
        assert not model.training
        assert model.ridge == 0.1
    torch.testing.assert_close(model.predict(xs), hs @ weight.t() + bias, rtol=0, atol=1e-8)


def test_teacher_forcing_feeds_the_target_back() -> None:
    cell, xs, targets = reservoir(3), sines(60, 2), torch.rand(2, 60, 2, dtype=F64)
    model = es.EchoState(cell, 2, feedback=True).fit(xs, targets, washout=5, ridge=0.01)
    before = torch.cat([torch.zeros(2, 1, 2, dtype=F64), targets[:, :-1]], 1)
    hs, h = cell(torch.cat([xs, before], -1))
    weight, _ = by_numpy(hs[:, 5:].flatten(0, 1), targets[:, 5:].flatten(0, 1), 0.01)
    torch.testing.assert_close(model.readout.weight.detach(), weight, rtol=0, atol=1e-8)
    inner, y = model.warm_up(xs, targets)
    assert torch.equal(inner, h)
    assert torch.equal(y, targets[:, -1])


def test_running_freely_is_the_loop_by_hand() -> None:
    model = es.EchoState(reservoir(1), 1).fit(sines(300), sines(301)[:, 1:], ridge=1e-6)
    warm = sines(50, 3)
    ys, h = model(warm)
    by_hand = [ys[:, -1]]
    for _ in range(9):
        y, h = model.step(by_hand[-1], h)
        by_hand.append(y)
    got = model.generate(10, warm)
    torch.testing.assert_close(got, torch.stack(by_hand, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.generate(1, warm), got[:, :1], rtol=0, atol=0)
    beside = es.EchoState(es.Parallel(reservoir(1), es.Identity(1)), 1).fit(sines(300), sines(301)[:, 1:])
    assert beside.generate(7, warm).shape == (3, 7, 1)


def test_long_runs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = es.EchoState(reservoir(1), 1).fit(sines(300), sines(301)[:, 1:], ridge=1e-6)
    whole = model.generate(40, sines(50, 2))
    monkeypatch.setattr(echo_state, "CHUNK", 7)
    torch.testing.assert_close(model.generate(40, sines(50, 2)), whole, rtol=0, atol=1e-12)


def test_feedback_runs_freely_from_a_taught_state() -> None:
    xs, targets = sines(80), torch.rand(1, 80, 2, dtype=F64)
    model = es.EchoState(reservoir(3), 2, feedback=True).fit(xs, targets, washout=5, ridge=0.01)
    state = model.warm_up(xs[:, :50], targets[:, :50])
    want, by_hand = [], state
    for x in xs[:, 50:].unbind(1):
        y, by_hand = model.step(x, by_hand)
        want.append(y)
    got = model.predict(xs[:, 50:], state)
    torch.testing.assert_close(got, torch.stack(want, 1), rtol=0, atol=1e-10)


def test_a_generator_without_inputs() -> None:
    wave, nothing = 0.5 * sines(600), torch.zeros(1, 600, 0, dtype=F64)
    model = es.EchoState(reservoir(1, 100), 1, feedback=True).fit(nothing, wave, ridge=1e-9)
    free = model.predict(nothing[:, :50], model.warm_up(nothing[:, :500], wave[:, :500]))
    assert (free - wave[:, 500:550]).abs().max() < 0.01


def test_several_ridges_are_chosen_among_by_what_was_held_out() -> None:
    xs = torch.randn(1, 200, 1, dtype=F64)
    targets = xs.roll(1, 1) + 0.5 * torch.randn(1, 200, 1, dtype=F64)
    ridges = [1e-12, 1e-3, 1.0, 30.0, 1e6]

    def held_out(ridge: float) -> float:
        part = es.EchoState(reservoir(1, 80), 1).fit(xs[:, :180], targets[:, :180], washout=100, ridge=ridge)
        return float((part.predict(xs) - targets)[:, 180:].square().mean())

    model = es.EchoState(reservoir(1, 80), 1).fit(xs, targets, washout=100, ridge=ridges)
    assert model.ridge == min(ridges, key=held_out)
    assert model.ridge not in (1e-12, 1e6)  # neither the smallest, best where it learned, nor the largest
    again = es.EchoState(reservoir(1, 80), 1).fit(xs, targets, washout=100, ridge=model.ridge)
    torch.testing.assert_close(model.readout.weight, again.readout.weight, rtol=0, atol=1e-8)


def test_online_without_feedback_is_ridge() -> None:
    cell, xs, targets = reservoir(1, 10), sines(150), torch.rand(1, 150, 2, dtype=F64)
    model = es.EchoState(cell, 2)
    errors, state = model.fit_online(xs[:, :70], targets[:, :70], ridge=0.5)
    assert torch.equal(errors[:, 0], targets[:, 0])  # of a read-out that is still zero
    ones = torch.ones(70, 1, dtype=F64)
    weight, _ = by_numpy(torch.cat([cell(xs)[0][0, :70], ones], 1), targets[0, :70], 0.5, intercept=False)
    torch.testing.assert_close(model.readout.weight.detach(), weight[:, :-1], rtol=0, atol=1e-8)
    torch.testing.assert_close(model.readout.bias.detach(), weight[:, -1], rtol=0, atol=1e-8)
    torch.testing.assert_close(state.state, model.warm_up(xs[:, :70]), rtol=0, atol=1e-12)


def test_force_learns_to_go_on_by_itself() -> None:
    t = torch.arange(1550, dtype=F64)
    wave = (torch.sin(t / 12) + 0.6 * torch.sin(t / 6) + 0.3 * torch.sin(t / 4))[None, :, None] / 1.5
    nothing = torch.zeros(1, 1550, 0, dtype=F64)
    # chaotic before it is taught
    cell = es.Reservoir(1, 150, radius=1.5, leak=0.2, input_scaling=1.0, bias_scaling=0.0, seed=0, dtype=F64)
    model = es.EchoState(cell, 1, feedback=True)
    errors, state = model.fit_online(nothing[:, :1400], wave[:, :1400], ridge=0.1)
    assert errors[:, -200:].abs().mean() < 0.05 * wave.abs().mean()
    free = model.predict(nothing[:, :150], state)
    assert (free - wave[:, 1400:]).abs().max() < 0.05


def test_one_wave_into_another() -> None:
    xs = torch.sin(torch.arange(1200, dtype=F64) / 6)[None, :, None]
    square = torch.tanh(4 * torch.sin(torch.arange(1200, dtype=F64) / 6 - 1))[None, :, None]
    model = es.EchoState(reservoir(1, 100), 1).fit(xs[:, :800], square[:, :800], ridge=1e-8)
    wrong = (model.predict(xs) - square)[:, 800:]
    assert wrong.square().mean().sqrt() < 0.01 * square.std()


def test_mackey_glass_on_its_own(shared_data) -> None:
    path = shared_data / "mackey_glass" / "mackey_glass_tau17.csv"
    series = torch.tensor(np.loadtxt(path, delimiter=","))[None, :, None]
    series = (series - series.mean()) / series.std()
    cell = es.Reservoir(1, 300, radius=0.9, leak=0.8, input_scaling=0.5, bias_scaling=0.5, seed=0, dtype=F64)
    model = es.EchoState(cell, 1).fit(series[:, :3000], series[:, 1:3001], ridge=1e-8)
    starts = range(4000, 9000, 500)
    free = model.generate(84, torch.cat([series[:, p - 100 : p] for p in starts]))
    wrong = free[:, -1] - torch.cat([series[:, p + 83] for p in starts])
    assert wrong.square().mean().sqrt() < 0.01


@pytest.mark.parametrize("feedback", [False, True])
def test_saved_and_loaded_gives_the_same_bits(feedback: bool, tmp_path) -> None:
    xs = sines(300)
    model = es.EchoState(reservoir(1 + feedback), 1, feedback=feedback).fit(xs, sines(301)[:, 1:])
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = es.EchoState(es.Reservoir(1 + feedback, 40, seed=9, dtype=F64), 1, feedback=feedback)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.predict(xs), model.predict(xs))
    if not feedback:
        assert torch.equal(other.generate(30, xs), model.generate(30, xs))


def test_fit_refuses() -> None:
    model, xs = es.EchoState(reservoir(2), 1), torch.randn(2, 30, 2, dtype=F64)
    targets = torch.randn(2, 30, 1, dtype=F64)
    with pytest.raises(ValueError, match=r"xs \(batch, time, 2\).*\(2, 30, 1\)"):
        model.fit(targets, targets)
    with pytest.raises(ValueError, match=r"targets should have shape \(2, 30, 1\), but have \(2, 29, 1\)"):
        model.fit(xs, targets[:, 1:])
    with pytest.raises(ValueError, match="washout=30 leaves nothing of sequences of at most 30 steps"):
        model.fit(xs, targets, washout=30)
    with pytest.raises(ValueError, match="0 < validation < 1"):
        model.fit(xs, targets, washout=5, ridge=[1, 2], validation=1.0)
    with pytest.raises(ValueError, match="at least one ridge"):
        model.fit(xs, targets, washout=5, ridge=[])
    with pytest.raises(ValueError, match=r"singular: rank \d+ of 40 features after 50 steps.*give ridge > 0"):
        es.EchoState(reservoir(2), 1).fit(xs * 0, targets, washout=5, ridge=0)
    xs[1, 7, 0] = math.nan
    with pytest.raises(ValueError, match="xs should be finite, but nan is at row 1, step 7, feature 0"):
        model.fit(xs, targets, washout=5)
    with pytest.raises(ValueError, match="expected one sequence, but got 2"):
        model.fit_online(targets.expand(-1, -1, 2), targets)


def test_running_freely_refuses() -> None:
    with pytest.raises(ValueError, match="input_size=2, output_size=1"):
        es.EchoState(reservoir(2), 1).generate(3, torch.zeros(1, 5, 2, dtype=F64))
    with pytest.raises(ValueError, match="0 steps"):
        es.EchoState(reservoir(1), 1).generate(3, torch.zeros(1, 0, 1, dtype=F64))
    model = es.EchoState(reservoir(2), 1, feedback=True)
    with pytest.raises(ValueError, match="feedback=True"):
        model.generate(3, torch.zeros(1, 5, 1, dtype=F64))
    with pytest.raises(ValueError, match="give the targets"):
        model.warm_up(torch.zeros(1, 5, 1, dtype=F64))
    with pytest.raises(ValueError, match="it has input_size 2 and y has 3 features"):
        es.EchoState(reservoir(2), 3, feedback=True)
