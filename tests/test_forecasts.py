"""Heads of numbers, errors of forecasts and simple rules against values computed by hand and by scipy."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from everstep.heads.mixture import GaussianMixture
from everstep.heads.numbers import Gaussian, NegativeBinomial, NumberHead, PointHead, Quantiles, StudentT
from everstep.measures.forecast_errors import (
    LEVELS,
    Forecasts,
    by_step,
    diebold_mariano,
    forecast_measures,
    mase_scale,
    owa,
)
from everstep.networks.window_values import normalised
from everstep.rivals.lag_ridge import LagRidge, carried
from everstep.rivals.series_rules import drift, naive, naive2, seasonal_factors

HEADS = [
    PointHead("mse"),
    PointHead("mae"),
    PointHead("huber"),
    Quantiles(LEVELS),
    Gaussian(),
    StudentT(),
    GaussianMixture(),
    NegativeBinomial(),
]
NAN = float("nan")


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_laws_of_every_head_of_numbers(head: NumberHead) -> None:
    torch.manual_seed(1)
    ys = torch.randn(3, 5, head.size, dtype=torch.float64).float().requires_grad_()
    target = torch.randint(6, (3, 5)).float()
    target[1, 2] = NAN
    whole = head.loss(ys, target)
    assert whole.shape == (3,)
    alone = head.each(ys, target)
    torch.testing.assert_close(whole, alone.nan_to_num(0).sum(1))
    torch.testing.assert_close(head.loss(ys, target, torch.tensor([5, 0, 2]))[2], alone[2, :2].sum())
    assert not head.loss(ys, target, torch.tensor([5, 0, 2]))[1].detach().any()
    whole.sum().backward()
    assert ys.grad is not None
    assert ys.grad.isfinite().all()
    assert not ys.grad[1, 2].any()
    with torch.no_grad():
        quantiles = head.quantiles(ys, LEVELS)
        assert quantiles.shape == (3, 5, len(LEVELS))
        assert (quantiles.diff(dim=-1) >= 0).all()
        torch.testing.assert_close(head.predict(ys), quantiles[..., LEVELS.index(0.5)])
        scale = torch.full((3, 1), 2.0)
        shift = torch.zeros(3, 1) if isinstance(head, NegativeBinomial) else torch.full((3, 1), 7.0)
        moved = head.rescaled(ys, shift, scale)
        torch.testing.assert_close(head.mean(moved), head.mean(ys) * 2 + shift, rtol=1e-4, atol=1e-4)
        if not isinstance(head, NegativeBinomial):
            torch.testing.assert_close(head.quantiles(moved, LEVELS), quantiles * 2 + 7, rtol=1e-3, atol=1e-3)


def test_losses_are_those_of_scipy() -> None:
    from scipy import stats

    ys, target = torch.tensor([[[0.3, -0.2, 0.5]]]), torch.tensor([[1.7]])
    spread, degrees = float(np.exp(-0.2)), 2 + float(np.log1p(np.exp(0.5)))
    want = -stats.norm.logpdf(1.7, 0.3, spread)
    assert float(Gaussian().loss(ys[..., :2], target)) == pytest.approx(want, rel=1e-3)
    assert float(StudentT().loss(ys, target)) == pytest.approx(-stats.t.logpdf(1.7, degrees, 0.3, spread), rel=1e-3)
    mean, alpha = float(np.exp(0.3)), float(np.log1p(np.exp(-0.2)))
    counts = -stats.nbinom.logpmf(4, 1 / alpha, 1 / (1 + alpha * mean))
    assert float(NegativeBinomial().loss(ys[..., :2], torch.tensor([[4.0]]))) == pytest.approx(counts, rel=1e-3)
    head = Quantiles((0.1, 0.5))
    found = head.loss(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[3.0]]))
    assert float(found) == pytest.approx((2 * 0.1 * 2 + 2 * 0.5 * 1) / 2)
    with pytest.raises(ValueError, match="rising levels"):
        Quantiles((0.5, 0.1))


def test_a_mixture_is_the_weighted_sum_of_its_parts() -> None:
    from scipy import stats

    head = GaussianMixture(2)
    ys = torch.tensor([[[1.0, -2.0, 0.3, -0.4, 0.5, -0.2]]])
    means, spreads = np.array([0.5, -1.5]), np.exp([0.3, -0.4]) + 1e-4
    weights = np.exp([0.5, -0.2]) / np.exp([0.5, -0.2]).sum()
    target = torch.tensor([[0.7]])
    want = -np.log((weights * stats.norm.pdf(0.7, means, spreads)).sum())
    assert float(head.loss(ys, target)) == pytest.approx(want, rel=1e-5)
    assert float(head.mean(ys)) == pytest.approx((weights * means).sum(), rel=1e-5)
    for level, value in zip((0.001, 0.3, 0.9), head.quantiles(ys, (0.001, 0.3, 0.9))[0, 0].tolist(), strict=True):
        assert (weights * stats.norm.cdf(value, means, spreads)).sum() == pytest.approx(level, rel=1e-4)
    tails = [np.log((weights * shape(0.7, means, spreads)).sum()) for shape in (stats.norm.cdf, stats.norm.sf)]
    assert head.log_tails(ys, target)[0, 0].tolist() == pytest.approx(tails, rel=1e-5)
    optimizer = torch.optim.Adam([two := torch.zeros(1, 1, 6, requires_grad=True)], 0.05)
    for _ in range(300):  # values at −3 and 3 in the ratio 1 : 2 are learned as two parts
        optimizer.zero_grad()
        head.loss(two.expand(1, 3, 6), torch.tensor([[-3.0, 3.0, 3.0]])).sum().backward()
        optimizer.step()
    assert head.mean(two).item() == pytest.approx(1, abs=0.1)
    assert head.quantiles(two, (0.2, 0.8))[0, 0].tolist() == pytest.approx([-3, 3], abs=0.3)
    with pytest.raises(ValueError, match="at least one component; got 0"):
        GaussianMixture(0)


def test_quantiles_have_the_mean_of_their_distribution() -> None:
    head = Quantiles(LEVELS)
    uniform = torch.tensor(LEVELS)[None, None]
    assert float(head.mean(uniform)) == pytest.approx(0.5, abs=1e-6)
    assert head.quantiles(uniform, (0.15, 0.99))[0, 0].tolist() == pytest.approx([0.15, 0.95])


def test_normalised_windows() -> None:
    values = torch.tensor([[NAN, 2.0, NAN, 4.0], [5.0, 5.0, 5.0, 5.0], [NAN, NAN, NAN, NAN], [0.0, 0.0, 0.0, 0.0]])
    found = normalised(values, "last", "window")
    assert found.level[:, 0].tolist() == [4, 5, 0, 0]
    assert found.spread[:, 0].tolist() == [1, 5, 1, 1]
    assert found.values[0].tolist() == [0, -2, -2, 0]
    assert found.there[0].tolist() == [0, 1, 0, 1]
    assert found.since[0].tolist() == [1, 0, 0.25, 0]
    assert all(torch.isfinite(part).all() for part in found)
    assert normalised(values, "mean", "none").level[0].tolist() == [3]
    by_size = normalised(torch.cat([values, torch.tensor([[-2.0, 4.0, NAN, NAN]])]), "none", "mean")
    assert by_size.spread[:, 0].tolist() == [3, 5, 1, 1, 3]
    assert by_size.values[0].tolist() == pytest.approx([0, 2 / 3, 2 / 3, 4 / 3])


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors_by_hand() -> None:
    target = np.array([[1.0, 2.0], [10.0, NAN]])
    quantiles = np.stack([np.full((2, 2), 3.0) + level for level in LEVELS], -1)
    quantiles[1] += 6.6
    found = forecast_measures(
        Forecasts(np.full((2, 2), 3.0), quantiles), target, np.array([0, 2]), np.array([1.0, 4.0])
    )
    assert found["count"] == 3
    assert found["mse"] == pytest.approx((4 + 1 + 49) / 3)
    assert found["rmse"] == pytest.approx(((4 + 1 + 49) / 3) ** 0.5)
    errors = np.array([2.5, 1.5, 0.1])  # of the medians 3.5, 3.5, 10.1
    assert found["mae"] == pytest.approx(errors.mean())
    assert found["mase"] == pytest.approx((2.0 / 1 + 0.1 / 4) / 2)
    smape = (np.mean([200 * 2.5 / 4.5, 200 * 1.5 / 5.5]) + 200 * 0.1 / 20.1) / 2
    assert found["smape"] == pytest.approx(smape)
    assert found["coverage_80"] == pytest.approx(1 / 3)
    losses = []
    for level in LEVELS:
        e = np.array([1.0, 2.0, 10.0]) - (np.array([3.0, 3.0, 9.6]) + level)
        losses.append(2 * np.maximum(level * e, (level - 1) * e))
    assert found["crps"] == pytest.approx(np.mean(losses))
    assert found["wql"] == pytest.approx(np.mean(losses[1:-1]) * 3 / 13)
    assert by_step(Forecasts(np.zeros((2, 2))), target).tolist() == [5.5, 2.0]
    below = forecast_measures(Forecasts(np.zeros((1, 1))), np.array([[-1.0]]), np.array([0]), np.array([NAN]))
    assert (below["smape"], below["mase"]) == (None, None)
    assert below["coverage_80"] is None


def test_owa_is_a_ratio_of_means() -> None:
    assert owa({"smape": 12.0, "mase": 1.0}, {"smape": 18.0, "mase": 2.0}) == pytest.approx((12 / 18 + 0.5) / 2)
    assert owa({"smape": None, "mase": 1.0}, {"smape": 18.0, "mase": 2.0}) is None


def test_a_flat_series_lies_within_its_quantiles_of_single_precision() -> None:
    target = np.full((2, 3), 0.1)
    found = Forecasts(target, np.full((2, 3, len(LEVELS)), 0.1, np.float32))
    measures = forecast_measures(found, target, np.arange(2), np.ones(2))
    assert (measures["coverage_80"], measures["coverage_90"]) == (1.0, 1.0)


def test_equal_forecasts_are_told_from_better_ones() -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    ours, noise = random.gamma(2.0, 1.0, 400), random.normal(0, 0.5, 400)
    assert diebold_mariano(ours, ours, 5) == 1.0
    assert diebold_mariano(ours[:1], ours[1:2], 5) is None
    assert diebold_mariano(ours, noise, 5, np.full(400, 7)) is None
    assert diebold_mariano(ours, ours + noise, 1) > 0.05
    assert diebold_mariano(ours, ours + noise + 0.3, 1) < 1e-6
    d = np.array([1.0, 3.0, 2.0, 4.0, 1.0])
    want = stats.ttest_1samp(d, 0).pvalue  # with one step ahead it is nearly a paired t test: variances differ by n − 1
    assert diebold_mariano(d, np.zeros(5), 1) == pytest.approx(want, rel=1e-6)


def test_equal_accuracy_of_series_that_depend_on_each_other() -> None:
    from scipy import stats

    random = np.random.default_rng(4)
    d, none = random.normal(0.3, 1, 60), np.zeros(60)
    alone = diebold_mariano(d, none, 3)
    times = np.arange(100, 160)
    assert diebold_mariano(d, none, 3, times) == pytest.approx(alone)
    order = random.permutation(60)
    assert diebold_mariano(d[order], none, 3, times[order]) == pytest.approx(alone)
    copies = np.tile(d, 50)  # fifty series that move as one say no more than one does
    assert diebold_mariano(copies, 0 * copies, 3, np.tile(times, 50)) == pytest.approx(alone)
    assert diebold_mariano(copies, 0 * copies, 3) < alone / 10
    rejected = [
        diebold_mariano(draw, 0 * draw, 1, np.tile(times, 4)) < 0.05
        for draw in (random.normal(size=240) for _ in range(400))
    ]
    assert 0.02 < np.mean(rejected) < 0.09  # independent series: the test has its size
    theirs = none + 0.5
    apart, far = diebold_mariano(d, theirs, 1), times * 24  # origins a whole window apart share nothing
    assert diebold_mariano(d, theirs, 24, far) == pytest.approx(apart)
    assert diebold_mariano(d[:20], none[:20], 48, far[:20]) == pytest.approx(diebold_mariano(d[:20], none[:20], 2))
    gaps = times[[0, 1, 5, 9]]
    apart = diebold_mariano(np.array([1.0, 2, -1, 3]), np.zeros(4), 2, gaps)
    centred = np.array([1.0, 2, -1, 3]) - 1.25
    variance = centred @ centred + 2 * 0.5 * centred[0] * centred[1]  # only the first two are a step apart
    statistic = 5 / np.sqrt(variance) * np.sqrt((5 - 4 + 2 / 4) / 4)
    assert apart == pytest.approx(2 * stats.t.sf(statistic, 3))


# --------------------------------------------------------------------------------------------------------------- rivals


def test_rules_by_hand() -> None:
    history = np.array([1.0, 2.0, NAN, 4.0])
    assert naive(history, 2).tolist() == [4, 4]
    assert naive(history, 3, 2).tolist() == [1, 4, 1]
    assert naive(history, 2, 9).tolist() == [4, 4]
    assert drift(history, 2).tolist() == [5, 6]
    assert naive(np.array([NAN]), 2).tolist() == [0, 0]
    assert mase_scale(history, 1) == 1.0
    assert np.isnan(mase_scale(np.ones(5), 1))
    factors = seasonal_factors(np.tile([1.0, 2.0, 3.0, 2.0], 5), 4)
    assert factors == pytest.approx(np.array([1, 2, 3, 2]) / 2)
    falling = np.tile([1.0, 2.0, 3.0, 2.0], 8)[:-1]
    assert naive2(falling, 2, 4) == pytest.approx([2.0, 1.0])


def test_ridge_finds_the_lags_that_made_a_series() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(200, 3))
    weight = np.array([[0.0, 0.5, 1.0], [1.0, 0.0, -1.0]])
    fitted = LagRidge()
    fitted.add(x[:90], x[:90] @ weight.T)
    fitted.add(x[90:], x[90:] @ weight.T)
    assert fitted.solve(0.0) == pytest.approx(weight, abs=1e-6)
    assert np.abs(fitted.solve(10.0)).max() < 0.2
    gaps = np.array([[NAN, 2.0, NAN], [1.0, NAN, 3.0]])
    assert carried(gaps).tolist() == [[0.0, 2.0, 2.0], [1.0, 1.0, 3.0]]
    with pytest.raises(ValueError, match="nothing to solve"):
        LagRidge().solve(0.0)


M4 = Path(os.environ.get("EVERSTEP_DATA", "missing")) / "m4"


@pytest.mark.skipif(not M4.is_dir(), reason="EVERSTEP_DATA is not set")
@pytest.mark.parametrize(
    ("name", "season", "smape", "mase"), [("Hourly", 24, 18.383, 2.395), ("Weekly", 1, 9.161, 2.777)]
)
def test_naive2_gives_what_the_competition_published(name: str, season: int, smape: float, mase: float) -> None:
    with gzip.open(M4 / f"{name}-train.csv.gz", "rt") as lines:
        train = [np.array([float(v) for v in row[1:] if v]) for row in list(csv.reader(lines))[1:]]
    with (M4 / f"{name}-test.csv").open() as lines:
        test = np.array([[float(v) for v in row[1:]] for row in list(csv.reader(lines))[1:]])
    found = np.stack([naive2(history, test.shape[1], season) for history in train])
    scales = np.array([mase_scale(history, season) for history in train])
    errors = forecast_measures(Forecasts(found), test, np.arange(len(test)), scales)
    assert errors["smape"] is not None
    assert errors["mase"] is not None
    assert round(errors["smape"], 3) == smape
    assert round(errors["mase"], 3) == mase
