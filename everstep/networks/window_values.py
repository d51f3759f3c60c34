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
    """

    values: Tensor
    there: Tensor
    since: Tensor
    level: Tensor
    spread: Tensor

    def of_targets(self, target: Tensor) -> Tensor:
        """(B, H) values as the network gives them; a missing one is NaN."""
        return (target - self.level) / self.spread


def normalised(
    values: Tensor, level: Literal["none", "last", "mean"] = "last", spread: Literal["none", "window"] = "window"
) -> Normalised:
    """Windows (B, W), NaN where a value is missing, about their level.

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
        base = filled[:, -1:] if level == "last" else mean
    if spread == "none":
        size = torch.ones_like(mean)
    else:
        centred = torch.where(there, values - mean, 0)
        floor = FLOOR * known.abs().amax(1, keepdim=True)
        size = (centred.square().sum(1, keepdim=True) / count).sqrt()
        size = torch.where(size > floor, size, torch.where(floor > 0, known.abs().amax(1, keepdim=True), 1.0))
    found = torch.where(begun, (filled - base) / size, 0)
    since = torch.where(begun, steps - last, values.shape[1]) / values.shape[1]
    return Normalised(found, there.to(values.dtype), since.to(values.dtype), base, size)
