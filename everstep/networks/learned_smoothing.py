"""Exponential smoothing of level and season, with learned weights for each series."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.networks.window_values import Normalised, Spread, normalised
from everstep.state import State


class SmoothingStep(Cell):
    """One step of exponential smoothing; the input is (y_t, 1 if y_t is known else 0, α, γ).

    l_t = α (y_t − s_t) + (1 − α) l_{t-1}; s_{t+m} = γ (y_t − l_t) + (1 − γ) s_t. A missing value changes neither. The
    state is (l, the next m seasons); the output is (l_t, s_t).

    >>> step = SmoothingStep(2)
    >>> start = torch.zeros(1, 1), torch.zeros(1, 2)
    >>> ys, _ = step(torch.tensor([[[4.0, 1.0, 0.5, 0.5], [4.0, 0.0, 0.5, 0.5]]]), start)
    >>> ys.tolist()
    [[[2.0, 0.0], [2.0, 0.0]]]

    Args:
        season: m, in steps; 1: no season.
    """

    def __init__(self, season: int):
        super().__init__(4, 2)
        self.season = season

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros."""
        return like.new_zeros(batch, 1), like.new_zeros(batch, self.season)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        level, seasons = state
        value, there, alpha, gamma = x.split(1, -1)
        alpha, gamma = alpha * there, gamma * there
        now = seasons[:, :1]
        level = level + alpha * (value - now - level)
        later = now + gamma * (value - level - now) if self.season > 1 else now
        return torch.cat([level, now], -1), (level, torch.cat([seasons[:, 1:], later], -1))


class LearnedSmoothing(nn.Module):
    """Normalise windows by the level and the season of exponential smoothing over the window (ES-RNN, Smyl 2020).

    Smyl, "A hybrid method of exponential smoothing and recurrent neural networks for time series forecasting". With the
    scaling "log" level and season multiply, as they do there; else they add. The weights α and γ of a series are
    learned with the network. The first season of the window, about its mean, is the season before the first step; in
    the paper it is learned for each series, and smoothing runs over the whole series.

    Args:
        series: the number of training series; others have the mean weights, before the logistic function.
        season: m, in steps; 1: no season.
        horizon: H, in steps.
    """

    def __init__(self, series: int, season: int, horizon: int):
        super().__init__()
        self.season, self.horizon = season, horizon
        self.weights = nn.Parameter(torch.tensor([0.0, -1.0]).repeat(max(series, 1), 1))
        self.cell = SmoothingStep(season)

    def forward(self, values: Tensor, series: Tensor, spread: Spread) -> Normalised:
        """Windows (B, W) of series with the numbers (B,): less level and season, over their spread.

        A missing value is the level of its step.
        """
        known = normalised(values, "none", "none")  # gaps hold the last known value
        size = normalised(values, "last", spread).spread
        count = len(self.weights)
        own = torch.where((series < count)[:, None], self.weights[series.clamp_max(count - 1)], self.weights.mean(0))
        shares = own.sigmoid()[:, None].expand(-1, values.shape[1], -1).to(known.values)
        first = known.values[:, : self.season]
        there = known.there[:, : self.season]
        total = there.sum(1, keepdim=True)
        start = torch.where(total > 0, (first * there).sum(1, keepdim=True) / total.clamp_min(1), known.values[:, -1:])
        seasons = (first - start) * there if self.season > 1 else torch.zeros_like(start)
        inputs = torch.cat([known.values[..., None], known.there[..., None], shares], 2)
        found, (level, later) = self.cell(inputs, (start, seasons))
        again = later.repeat(1, -(-self.horizon // self.season))[:, : self.horizon]
        smooth = torch.where(known.there > 0, known.values - found[..., 1], found[..., 0])
        begun = known.there.cumsum(1) > 0
        inside = torch.where(begun, (smooth - level) / size, 0)
        return Normalised(inside, known.there, known.since, level, size, level + again)
