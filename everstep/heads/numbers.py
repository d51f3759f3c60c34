"""Heads for numbers: distributions whose parameters are the outputs of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from everstep.heads.head import Head
from everstep.heads.sum_over_steps import over_steps
from everstep.heads.tails import log_tails

SMALLEST = 1e-4
"""Smallest spread and dispersion: a narrower distribution of a normalised value would fit rounding errors."""
MOST_LOG = 15.0
"""Largest absolute logarithm of a mean or a spread, against overflow."""


class NumberHead(Head):
    """p(target_t | y_t) of numbers, without weights.

    y, (batch, time, `size`), holds the unconstrained parameters of each step's distribution. A target that is NaN is
    missing and has no loss.

    Attributes:
        size: the number of parameters per step.
        locations: how many of them, the first, move with a shift of the value.
        in_data_units: whether the loss needs targets in data units; else shifted and scaled targets.
    """

    size: int
    locations = 1
    in_data_units = False

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        """The loss of each step, (batch, time), for targets without NaN."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def loss(self, ys: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The sum of `each` over the steps whose target is not missing, (batch,)."""
        there = ~target.isnan()
        return over_steps(torch.where(there, self.each(ys.float(), torch.where(there, target, 0)), 0), lengths)

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The median of each step, (batch, time)."""
        return self.quantiles(ys, (0.5,))[..., 0]

    def mean(self, ys: Tensor) -> Tensor:
        """The mean of each step, (batch, time)."""
        raise NotImplementedError(f"{type(self).__name__} has no mean")

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        """The quantiles of each step, (batch, time, levels)."""
        raise NotImplementedError(f"{type(self).__name__} has no quantiles")

    def log_tails(self, ys: Tensor, target: Tensor) -> Tensor:
        """log P(v ≤ target) and log P(v ≥ target) of each step, (batch, time, 2) float64."""
        raise NotImplementedError(f"{type(self).__name__} has no distribution")

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Convert the parameters of v to those of scale · v + shift; both (batch, 1) or (batch, time), scale > 0.

        Known limit: a spread below `SMALLEST` becomes about that, and one above exp(`MOST_LOG`) becomes that.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be rescaled")


class PointHead(NumberHead):
    """One number per step, without a distribution: `quantiles` repeats it.

    Loss of e = target − y: e² ("mse"), |e| ("mae"), or Huber's, e²/2 for |e| < 1 and |e| − ½ beyond (Huber 1964).

    >>> PointHead("mae").loss(torch.zeros(1, 3, 1), torch.tensor([[1.0, -2.0, float("nan")]]))
    tensor([3.])

    Args:
        error: which loss.
    """

    size = 1

    def __init__(self, error: Literal["mse", "mae", "huber"] = "mse"):
        super().__init__()
        self.error = error

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        e = ys[..., 0] - target
        if self.error == "mse":
            return e.square()
        return e.abs() if self.error == "mae" else F.huber_loss(ys[..., 0], target, reduction="none")

    def mean(self, ys: Tensor) -> Tensor:
        return ys[..., 0]

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        return ys.expand(*ys.shape[:-1], len(levels))

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return ys * scale[..., None] + shift[..., None]


class Quantiles(NumberHead):
    """Quantiles q_k at levels τ_k, without a parametric family (Koenker & Bassett 1978).

    Loss: the mean over k of 2 · max(τ_k e_k, (τ_k − 1) e_k), e_k = target − q_k. With many levels it approaches the
    continuous ranked probability score. `quantiles` sorts crossing quantiles, interpolates linearly between levels, and
    is constant beyond the outermost levels. `mean` is the mean of this distribution.

    >>> head = Quantiles((0.1, 0.5, 0.9))
    >>> head.loss(torch.zeros(1, 1, 3), torch.tensor([[1.0]]))
    tensor([1.])
    >>> head.quantiles(torch.tensor([[[3.0, 2.0, 4.0]]]), (0.5, 0.7))
    tensor([[[3.0000, 3.5000]]])

    Args:
        levels: the increasing levels τ_k, each within (0, 1).

    Raises:
        ValueError: levels that do not increase or are outside (0, 1).
    """

    levels: Tensor

    def __init__(self, levels: Sequence[float]):
        super().__init__()
        if not levels or any(not 0 < level < 1 for level in levels) or sorted(set(levels)) != list(levels):
            raise ValueError(f"Quantiles: expected rising levels within (0, 1); got {tuple(levels)}")
        self.size = self.locations = len(levels)
        self._own = tuple(levels)
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        e = target[..., None] - ys
        return 2 * torch.maximum(self.levels * e, (self.levels - 1) * e).mean(-1)

    def mean(self, ys: Tensor) -> Tensor:
        found, levels = ys.sort(-1).values, self.levels.to(ys.dtype)
        inner = ((found[..., 1:] + found[..., :-1]) / 2 * levels.diff()).sum(-1)
        return inner + levels[0] * found[..., 0] + (1 - levels[-1]) * found[..., -1]

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        found = ys.sort(-1).values
        if tuple(levels) == self._own:
            return found
        weights = np.stack([np.interp(levels, self._own, row) for row in np.eye(self.size)])  # linear between two
        return found @ torch.from_numpy(weights).to(found)

    def log_tails(self, ys: Tensor, target: Tensor) -> Tensor:
        return log_tails(ys.sort(-1).values, self.levels, target)

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return ys * scale[..., None] + shift[..., None]


class Gaussian(NumberHead):
    """N(μ, σ²), y = (μ, log σ). Loss: −log p in nats.

    >>> Gaussian().loss(torch.zeros(1, 1, 2), torch.zeros(1, 1))
    tensor([0.9190])
    """

    size = 2

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        mean, deviation = ys[..., 0], _spread(ys[..., 1])
        found: Tensor = ((target - mean) / deviation).square() / 2 + deviation.log()
        return found + 0.5 * math.log(2 * math.pi)

    def mean(self, ys: Tensor) -> Tensor:
        return ys[..., 0]

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        normal: Tensor = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).to(ys)
        return ys[..., :1] + _spread(ys[..., 1:]) * normal

    def log_tails(self, ys: Tensor, target: Tensor) -> Tensor:
        z = (target.double() - ys[..., 0].double()) / _spread(ys[..., 1].double())
        found: Tensor = torch.special.log_ndtr(torch.stack([z, -z], -1))
        return found

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([ys[..., 0] * scale + shift, _spread(ys[..., 1]).log() + scale.log()], -1)


class StudentT(NumberHead):
    """Student's t about μ with spread σ and ν > 2 degrees of freedom, y = (μ, log σ, softplus⁻¹(ν − 2)).

    Its tails are heavier than a Gaussian's, so outliers cost less. Loss: −log p in nats.

    >>> head = StudentT()
    >>> head.quantiles(torch.zeros(1, 1, 3), (0.5,)).abs() < 1e-6
    tensor([[[True]]])
    """

    size = 3

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        spread, degrees = _spread(ys[..., 1]), 2 + F.softplus(ys[..., 2])
        family = torch.distributions.StudentT(degrees, ys[..., 0], spread, validate_args=False)
        found: Tensor = -family.log_prob(target)
        return found

    def mean(self, ys: Tensor) -> Tensor:
        return ys[..., 0]

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        from scipy import stats

        degrees = (2 + F.softplus(ys[..., 2:])).detach().cpu().double().numpy()
        found = torch.from_numpy(np.asarray(stats.t.ppf(np.array(levels), degrees))).to(ys)
        return ys[..., :1] + _spread(ys[..., 1:2]) * found

    def log_tails(self, ys: Tensor, target: Tensor) -> Tensor:
        from scipy import stats

        degrees = _numbers(2 + F.softplus(ys[..., 2]))
        z = _numbers((target.double() - ys[..., 0].double()) / _spread(ys[..., 1].double()))
        both = np.stack([-z, z], -1)
        degrees = np.broadcast_to(degrees[..., None], both.shape)
        found = np.asarray(stats.t.logsf(both, degrees))
        far = np.isneginf(found) & np.isfinite(both)  # too small for a float: density over hazard, as z → ∞
        z, degrees = both[far], degrees[far]
        found[far] = stats.t.logpdf(z, degrees) - np.log((degrees + 1) / (degrees / z + z))
        return torch.from_numpy(found).to(ys.device)

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([ys[..., 0] * scale + shift, _spread(ys[..., 1]).log() + scale.log(), ys[..., 2]], -1)


class NegativeBinomial(NumberHead):
    """Counts 0, 1, 2, … with mean m and variance m + α m², y = (log m, softplus⁻¹(α)). Loss: −log p in nats.

    `rescaled` multiplies m by the scale (Salinas et al. 2020, "DeepAR") and ignores the shift.

    >>> NegativeBinomial().mean(torch.zeros(1, 1, 2))
    tensor([[1.]])
    """

    size = 2
    in_data_units = True

    def each(self, ys: Tensor, target: Tensor) -> Tensor:
        mean, alpha = self.mean(ys), F.softplus(ys[..., 1]) + SMALLEST
        r = 1 / alpha
        within = torch.lgamma(target + r) - torch.lgamma(r) - torch.lgamma(target + 1)
        return -(
            within - r * torch.log1p(alpha * mean) + target * (torch.log(alpha * mean) - torch.log1p(alpha * mean))
        )

    def mean(self, ys: Tensor) -> Tensor:
        return ys[..., 0].clamp(-MOST_LOG, MOST_LOG).exp()

    def quantiles(self, ys: Tensor, levels: Sequence[float]) -> Tensor:
        from scipy import stats

        mean = self.mean(ys)[..., None].detach().cpu().double().numpy()
        alpha = (F.softplus(ys[..., 1:]) + SMALLEST).detach().cpu().double().numpy()
        found = stats.nbinom.ppf(np.array(levels), 1 / alpha, 1 / (1 + alpha * mean))
        return torch.from_numpy(np.asarray(found)).to(ys)

    def log_tails(self, ys: Tensor, target: Tensor) -> Tensor:
        from scipy import stats

        mean, alpha = _numbers(self.mean(ys)), _numbers(F.softplus(ys[..., 1]) + SMALLEST)
        r, q, value = 1 / alpha, alpha * mean / (1 + alpha * mean), _numbers(target)
        most, least = np.floor(value), np.ceil(value)
        family = stats.nbinom(r, 1 - q)
        below, above = np.asarray(family.logcdf(most)), np.asarray(family.logsf(least - 1))
        # too small for a float: a geometric series from the nearest count
        with np.errstate(all="ignore"):
            lower = family.logpmf(most) - np.log1p(-most / ((most - 1 + r) * q))
            upper = family.logpmf(least) - np.log1p(-(least + r) / (least + 1) * q)
        below = np.where(np.isneginf(below) & (most >= 0), lower, below)
        above = np.where(np.isneginf(above) & np.isfinite(least), upper, above)
        return torch.from_numpy(np.stack([below, above], -1)).to(ys.device)

    def rescaled(self, ys: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([ys[..., 0] + scale.log(), ys[..., 1].expand_as(ys[..., 0])], -1)


def _spread(raw: Tensor) -> Tensor:
    """The spread of its logarithm, at least SMALLEST."""
    return raw.clamp(-MOST_LOG, MOST_LOG).exp() + SMALLEST


def _numbers(values: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values as float64 in numpy, for scipy."""
    found: np.ndarray[Any, np.dtype[np.float64]] = values.detach().cpu().double().numpy()
    return found
