"""Exponential smoothing within the network: its recursion, what it forecasts, that its weights are learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everstep.data.windows import WindowBatch
from everstep.errors import ConfigError
from everstep.networks.forecaster import Forecaster, window_losses
from everstep.networks.forecaster_section import ForecasterSection, WindowShape, checked_sizes
from everstep.networks.learned_smoothing import LearnedSmoothing
from everstep.runs.recipe_files import load_task

NAN = float("nan")


def by_hand(values: np.ndarray, season: int, alpha: float, gamma: float) -> tuple[float, list[float], np.ndarray]:
    """The level at the end, the next seasons, and the smoothed values, from the equations."""
    level = float(np.nanmean(values[:season]))
    seasons = [0.0 if season == 1 or np.isnan(value) else value - level for value in values[:season]]
    inside = []
    for value in values:
        now = seasons.pop(0)
        later = now
        if not np.isnan(value):
            level = alpha * (value - now) + (1 - alpha) * level
            later = gamma * (value - level) + (1 - gamma) * now if season > 1 else 0.0
        inside.append(level if np.isnan(value) else value - now)
        seasons.append(later)
    return level, seasons, np.array(inside) - level


@pytest.mark.parametrize("season", [1, 3])
def test_the_recursion_value_by_value(season: int) -> None:
    torch.manual_seed(0)
    module = LearnedSmoothing(2, season, 5).double()
    with torch.no_grad():
        module.weights.copy_(torch.tensor([[0.3, -0.5], [-1.0, 0.8]], dtype=torch.float64))
    values = torch.randn(3, 9).double() + 4
    values[1, 1] = values[1, 5] = values[2, 8] = NAN
    found = module(values, torch.tensor([0, 1, 2]), "none")
    weights = np.array([[0.3, -0.5], [-1.0, 0.8], [-0.35, 0.15]])  # the last: the mean, for an unknown series
    for row in range(3):
        alpha, gamma = 1 / (1 + np.exp(-weights[row]))
        level, seasons, inside = by_hand(values[row].numpy(), season, alpha, gamma)
        assert found.level[row].item() == pytest.approx(level)
        np.testing.assert_allclose(found.values[row].detach().numpy(), inside, atol=1e-12)
        want = [level + seasons[step % season] for step in range(5)]
        np.testing.assert_allclose(found.ahead[row].detach().numpy(), want, atol=1e-12)


def test_a_window_without_values_is_finite() -> None:
    values = torch.full((2, 8), NAN)
    values[1, 6:] = torch.tensor([2.0, 3.0])
    found = LearnedSmoothing(1, 4, 3)(values, torch.tensor([0, 0]), "window")
    assert all(part.isfinite().all() for part in found)
    assert not found.values[1, :6].any()


def test_a_network_learns_the_weights_of_each_series() -> None:
    torch.manual_seed(0)
    shape = WindowShape(window=24, horizon=3, segment=4, season=4, past=0, future=0, series=2, gaps=False)
    section = ForecasterSection(hidden_size=4, smoothing="learned", spread="none", head="point", decode="direct")
    model = Forecaster(section, shape)
    torch.nn.init.zeros_(model.write.weight)
    torch.nn.init.zeros_(model.write.bias)
    random = np.random.default_rng(0)
    jumping = np.cumsum(random.normal(0, 1, (200, 27)), 1)  # the best forecast is the last value: α near 1
    steady = 5 + random.normal(0, 1, (200, 27))  # … the mean: α near 0
    rows = torch.from_numpy(np.concatenate([jumping, steady])).float()
    series = torch.arange(2).repeat_interleave(200)
    empty = torch.zeros(400, 24, 0), torch.zeros(400, 27, 0)
    batch = WindowBatch(rows[:, :24], *empty, rows[:, 24:], series, 1200)
    optimizer = torch.optim.Adam([model.smoothing.weights], 0.2)  # type: ignore[union-attr]
    losses = []
    for _ in range(40):
        (loss,) = window_losses(model, batch)
        optimizer.zero_grad()
        loss.total.mean().backward()
        optimizer.step()
        losses.append(loss.total.mean().item())
    alpha = model.smoothing.weights.sigmoid()[:, 0]  # type: ignore[union-attr]
    assert losses[-1] < 0.9 * losses[0]
    assert alpha[0] > 0.65
    assert alpha[1] < 0.3


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: forecast\ndata: {train: everstep:rides}\nmodel: {smoothing: learned}\n")
    for settings, said in (
        (["model.level=mean"], r"model\.level: expected last beside smoothing: learned"),
        (["model.decode=recursive"], r"model\.smoothing: expected none beside head: negative-binomial and decode: rec"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_task(path, settings)
    with pytest.raises(ConfigError, match=r"model\.smoothing: expected a window of at least a season \(24\); got 12"):
        checked_sizes(ForecasterSection(smoothing="learned", window=12, segment=4), 24)
