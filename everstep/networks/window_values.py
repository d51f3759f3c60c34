"""The values of windows about a level and over a spread of their own, with those that are missing carried forward."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-5
"""Of the spread beside the size of the values, so that a constant window is divided by something."""


class Normalised(NamedTuple):
    """B windows of W steps as the network reads them.

    Attributes:
        values: (B, W) (v − level) / spread; the last one that was there where one is missing; 0 before the first.
        there: (B, W) 1 where a value was there, else 0.
        since: (B, W) steps since one was there over W, at most 1.
        level, spread: (B, 1).
        ahead: (B, 1) or (B, H), what targets are taken about.
    """

    values: Tensor
    there: Tensor
    since: Tensor
    level: Tensor
    spread: Tensor
    ahead: Tensor

    def of_targets(self, target: Tensor) -> Tensor:
        """(B, H) values as the network gives them; a missing one is NaN."""
        return (target - self.ahead) / self.spread


Level = Literal["none", "last", "mean", "season"]


def normalised(
    values: Tensor, level: Level = "last", spread: Literal["none", "window"] = "window", ahead: tuple[int, int] = (1, 1)
) -> Normalised:
    """Windows (B, W), NaN where a value is missing, about their level.

    Args:
        values: the windows.
        level: none; last: the last value; mean; season: inputs are about the last value, targets about those of the
            last season, which come again and again.
        spread: none, or the standard deviation of the window.
        ahead: of level: season its steps m ≤ W, and the horizon H.

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


def seasonal_weight(known: Normalised, season: int) -> Tensor:
    """1 over mean |v_t − v_{t−m}| of normalised windows, (B,): the weight by which errors become those of MASE; at most
    20.

    >>> seasonal_weight(normalised(torch.tensor([[1.0, 3.0, 2.0]]), spread="none"), 1)
    tensor([0.6667])
    """
    if known.values.shape[1] <= season:
        return known.values.new_ones(len(known.values))
    gaps = (known.values[:, season:] - known.values[:, :-season]).abs().mean(1)
    return gaps.clamp_min(0.05).reciprocal()
