"""Normalise the values of each window by its own level and spread, and carry the last value over gaps."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-5
"""Smallest spread relative to the largest absolute value; below it that value is the spread (constant windows)."""


class Normalised(NamedTuple):
    """B normalised windows of W steps.

    Attributes:
        values: (B, W) (v − level) / spread; the last known value in gaps; 0 before the first value.
        there: (B, W) 1 where the value is known, 0 where it is missing.
        since: (B, W) steps since the last known value, divided by W; 1 before the first value.
        level, spread: (B, 1).
        ahead: (B, 1) or (B, H), the level of the targets.
    """

    values: Tensor
    there: Tensor
    since: Tensor
    level: Tensor
    spread: Tensor
    ahead: Tensor

    def of_targets(self, target: Tensor) -> Tensor:
        """Normalise targets (B, H): (target − ahead) / spread; NaN where they are missing."""
        return (target - self.ahead) / self.spread


Level = Literal["none", "last", "mean", "season"]
Spread = Literal["none", "window", "mean"]


def normalised(
    values: Tensor, level: Level = "last", spread: Spread = "window", ahead: tuple[int, int] = (1, 1)
) -> Normalised:
    """Normalise windows by their level and spread.

    Args:
        values: (B, W), NaN where a value is missing.
        level: what is subtracted. none: 0; last: the last value; mean: the mean; season: the last value from the
            inputs, the values of the last season, repeated, from the targets.
        spread: what both are divided by. none: 1; window: the standard deviation of the window; mean: the mean of |v|.
        ahead: for the level "season": the season m ≤ W and the horizon H, in steps.

    >>> normalised(torch.tensor([[1.0, float("nan"), 3.0]]), spread="none").values
    tensor([[-2., -2.,  0.]])
    """
    there = ~values.isnan()
    steps = torch.arange(values.shape[1], device=values.device)
    last = torch.where(there, steps, -1).cummax(1).values
    filled = torch.where(there, values, 0).gather(1, last.clamp_min(0))
    begun = last >= 0
    count = there.sum(1, keepdim=True).clamp_min(1)
    known = torch.where(there, values, 0)
    mean = known.sum(1, keepdim=True) / count
    if level == "none":
        base = torch.zeros_like(mean)
    else:
        base = mean if level == "mean" else filled[:, -1:]
    if spread == "none":
        size = torch.ones_like(mean)
    elif spread == "mean":
        size = known.abs().sum(1, keepdim=True) / count
        size = torch.where(size > 0, size, 1.0)
    else:
        centred = torch.where(there, values - mean, 0)
        floor = FLOOR * known.abs().amax(1, keepdim=True)
        size = (centred.square().sum(1, keepdim=True) / count).sqrt()
        size = torch.where(size > floor, size, torch.where(floor > 0, known.abs().amax(1, keepdim=True), 1.0))
    found = torch.where(begun, (filled - base) / size, 0)
    since = torch.where(begun, steps - last, values.shape[1]) / values.shape[1]
    target = base
    if level == "season":
        season, horizon = ahead
        again = filled[:, -season:].repeat(1, -(-horizon // season))[:, :horizon]
        target = torch.where(begun[:, -season:].all(1, keepdim=True), again, base)
    return Normalised(found, there.to(values.dtype), since.to(values.dtype), base, size, target)


def since_seen(there: Tensor, times: Tensor | None = None) -> Tensor:
    """δ_t of each feature: the time since it was there before t, or since the first step, (B, T, D).

    Args:
        there: (B, T, D) 1 where a value is known, else 0.
        times: (B, T, D) the time of each; None: steps.

    >>> since_seen(torch.tensor([[[1.0], [1.0], [0.0], [0.0], [1.0]]])).flatten()
    tensor([0., 1., 1., 2., 3.])
    """
    steps = torch.arange(there.shape[1], device=there.device)[:, None]
    last = torch.where(there > 0, steps, 0).cummax(1).values
    before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
    return (steps - before).to(there.dtype) if times is None else times - times.gather(1, before)


def seasonal_weight(known: Normalised, season: int) -> Tensor:
    """1 / mean |v_t − v_{t−m}| of each normalised window, (B,), at most 20, with m the season in steps.

    It weights errors as MASE does. Windows of m steps or fewer have weight 1.

    >>> seasonal_weight(normalised(torch.tensor([[1.0, 3.0, 2.0]]), spread="none"), 1)
    tensor([0.6667])
    """
    if known.values.shape[1] <= season:
        return known.values.new_ones(len(known.values))
    gaps = (known.values[:, season:] - known.values[:, :-season]).abs().mean(1)
    return gaps.clamp_min(0.05).reciprocal()
