"""Autoregressions of each series that are mixed into a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from everstep.data.panel import as_panel
from everstep.data.readers.time_stamps import Frequency
from everstep.data.windows import WindowBatch, Windows
from everstep.errors import ConfigError
from everstep.networks.forecaster import Forecaster
from everstep.networks.forecaster_section import ForecasterSection, WindowShape, checked_sizes
from everstep.networks.series_lags import PENALTY, SeriesLags

NAN = float("nan")
HORIZON = 5


def windows_of(series: list[np.ndarray], window: int) -> Windows:
    """All windows of these series, with windows that begin before them."""
    counts = np.array([len(values) for values in series])
    columns = np.concatenate(series), np.zeros((counts.sum(), 0)), np.zeros((counts.sum(), 0))
    names = [str(place) for place in range(len(series))]
    rows, numbers = np.concatenate([np.arange(count) for count in counts]), np.repeat(np.arange(len(series)), counts)
    panel = as_panel(names, numbers, rows, Frequency("step", 1), columns)
    first = np.full(len(series), 2)
    return Windows(panel, first, counts - 1, panel.known, window=window, horizon=HORIZON, batch_size=8, seed=1)


def by_hand(
    values: np.ndarray, lags: list[int], difference: int, window: int, missing: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of one series, and its forecast from its end, from the equations."""
    rows, targets = [], []
    for at in range(max(lags) + difference, len(values) + 1):
        if difference:
            x, base = (values[difference:] - values[:-difference])[: at - difference], values[at - difference]
        else:
            base = values[max(0, at - window) : at].mean()
            x = values[:at] - base
        row = np.array([x[-lag] for lag in lags])
        if at < len(values) and at not in missing:
            rows.append(row)
            targets.append(values[at] - base)
    products = np.array(rows).T @ np.array(rows)
    loaded = products + PENALTY * np.trace(products) / len(lags) * np.eye(len(lags))
    weights = np.linalg.solve(loaded, np.array(rows).T @ np.array(targets))
    ahead = list(x)
    for _ in range(HORIZON):
        ahead.append(sum(weight * ahead[-lag] for weight, lag in zip(weights, lags, strict=True)))
    found = list(values)
    for step in ahead[-HORIZON:]:
        found.append(step + (found[-difference] if difference else base))
    return weights, np.array(found[-HORIZON:])


@pytest.mark.parametrize("difference", [0, 4])
def test_weights_and_forecasts_are_those_of_each_series(difference: int) -> None:
    random = np.random.default_rng(0)
    series = [10 + np.cumsum(random.normal(size=size)) for size in (60, 3, 45)]
    lags = [1, 2, 5]
    module = SeriesLags(3, lags, difference, HORIZON).double()
    module.fit(windows_of(series, 12))
    ends = torch.full((4, 12), NAN, dtype=torch.float64)
    for row, values in enumerate([*series, series[0]]):
        kept = values[-12:]
        ends[row, -len(kept) :] = torch.from_numpy(kept)
    found = module(ends, torch.tensor([0, 1, 2, 3]))
    for place in (0, 2):
        weights, ahead = by_hand(series[place], lags, difference, 12)
        np.testing.assert_allclose(module.weights[place], weights, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(found[place], ahead, rtol=1e-4)
    mean = (module.weights[0] + module.weights[2]) / 2  # of the series that is too short, and of an unknown one
    torch.testing.assert_close(module.weights[[1, 3]], mean.expand(2, -1))
    short = series[1]
    again = [short[2], *short, short[2]]  # without a difference that is known there is none ahead
    assert found[1].tolist() == pytest.approx(again) if difference else found[1].isfinite().all()


def test_missing_values_are_those_before_and_no_targets() -> None:
    filled = 10 + np.cumsum(np.random.default_rng(0).normal(size=60))
    gaps = [30, 31, 58]
    filled[[30, 31]], filled[58] = filled[29], filled[57]
    values = filled.copy()
    values[gaps] = NAN
    module = SeriesLags(1, [1, 2, 5], 4, HORIZON).double()
    module.fit(windows_of([values], 12))
    weights, ahead = by_hand(filled, [1, 2, 5], 4, 12, gaps)
    np.testing.assert_allclose(module.weights[0], weights, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(module(torch.from_numpy(values[None, -12:]), torch.tensor([0]))[0], ahead, rtol=1e-4)
    assert module(torch.full((1, 12), NAN), torch.tensor([0])).tolist() == [[0.0] * HORIZON]


@pytest.mark.parametrize("head", ["quantiles", "gaussian", "student-t", "mixture", "point"])
def test_a_share_moves_the_median_and_training_is_as_without(head: Any) -> None:
    shape = WindowShape(12, HORIZON, 4, 4, 0, 0, 2, False)
    models = []
    for more in ({"lags": (1, 3), "lags_difference": 4, "lags_share": 0.3}, {}):
        torch.manual_seed(0)
        members = 1 if head == "mixture" else 2
        models.append(Forecaster(ForecasterSection(hidden_size=8, head=head, members=members, **more), shape))
    mixed, plain = models
    assert mixed.lags is not None
    assert all(other.lags is None for other in mixed.others)
    mixed.begin(windows_of([np.random.default_rng(place).normal(size=40) for place in range(2)], 12))
    empty = torch.zeros(3, 12, 0), torch.zeros(3, 17, 0)
    values = torch.randn(3, 12)
    batch = WindowBatch(values, *empty, torch.randn(3, HORIZON), torch.tensor([0, 1, 2]), 15)
    torch.testing.assert_close(mixed.losses(batch), plain.losses(batch))
    before, found = (model.eval().laws(batch) for model in (plain, mixed))
    if head == "point":
        median, before, found = before[0], before[0][..., None], found[0][..., None]
    else:
        levels = (0.2, 0.5, 0.9)
        before, found = (model.quantiles_of(law[2], levels) for model, law in ((plain, before), (mixed, found)))
        median = before[..., 1]
    moved = 0.3 * (mixed.lags(values, batch.series) - median)
    assert moved.abs().min() > 1e-3
    torch.testing.assert_close(found, before + moved[..., None], rtol=1e-3, atol=2e-4)


def test_lags_reach_no_further_than_the_window() -> None:
    with pytest.raises(ConfigError, match=r"lags, plus lags_difference, of at most the window \(12\); got 13"):
        checked_sizes(ForecasterSection(lags=(9, 1), lags_difference=4), 4)
    assert checked_sizes(ForecasterSection(lags=(8, 1), lags_difference=4), 4) == (12, 4, 4)
