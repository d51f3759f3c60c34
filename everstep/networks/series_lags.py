"""A linear autoregression of each series, fitted by ridge regression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from everstep.data.windows import Windows
from everstep.networks.window_values import Normalised, normalised
from everstep.rivals.lag_ridge import LagRidge

PENALTY = 1e-4
"""λ relative to the mean square of a lag."""


class SeriesLags(nn.Module):
    """x̂_t = Σ_l a_l x_{t−l}, with weights a of each series; steps ahead read the forecasts before them.

    x_t = y_t − y_{t−d} with a difference d; else y_t less the mean of the window.

    Args:
        series: the number of training series; others have the mean weights.
        lags: l, in steps.
        difference: d, in steps; 0: none.
        horizon: H, in steps.

    Attributes:
        weights: (series + 1, lags); zeros until `fit`, so that the forecast is the value d steps before, or the mean.

    >>> lags = SeriesLags(1, (1,), 2, 3)
    >>> lags(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([0]))
    tensor([[5., 2., 5.]])
    """

    weights: Tensor

    def __init__(self, series: int, lags: Sequence[int], difference: int, horizon: int):
        super().__init__()
        self.lags, self.difference, self.horizon = tuple(lags), difference, horizon
        self.register_buffer("weights", torch.zeros(series + 1, len(self.lags)))

    def _centred(self, values: Tensor) -> tuple[Normalised, Tensor, Tensor]:
        """The windows about their last value or mean, x, and where x is known, (B, steps)."""
        known = normalised(values, "last" if self.difference else "mean", "none")
        begun = known.there.cumsum(1) > 0
        if not self.difference:
            return known, known.values, begun
        begun = begun[:, : -self.difference]
        x = known.values[:, self.difference :] - known.values[:, : -self.difference]
        return known, torch.where(begun, x, 0), begun

    @torch.no_grad()
    def fit(self, windows: Windows) -> None:
        """Fit the weights to the first target of each window. A series whose windows are too short has the mean."""
        fitted: dict[int, LagRidge] = defaultdict(LagRidge)
        for start in range(0, windows.number, 1024):
            batch = windows.made_of(np.arange(start, min(start + 1024, windows.number)))
            known, x, begun = self._centred(batch.values.double())
            target = batch.target[:, :1] - known.level
            if self.difference:
                target = target - known.values[:, [-self.difference]]
            kept = begun[:, -max(self.lags)] & ~target[:, 0].isnan()
            lagged, came = x[kept][:, [-lag for lag in self.lags]].numpy(), target[kept].numpy()
            own = batch.series[kept].numpy()
            for series in np.unique(own):
                fitted[int(series)].add(lagged[own == series], came[own == series])
        found = {series: torch.from_numpy(ridge.solve(PENALTY)[0]) for series, ridge in fitted.items()}
        if found:
            self.weights.copy_(torch.stack(list(found.values())).mean(0).expand_as(self.weights))
            self.weights[list(found)] = torch.stack(list(found.values())).to(self.weights)

    def forward(self, values: Tensor, series: Tensor) -> Tensor:
        """The forecast, (B, H), of windows (B, W), NaN where a value is missing, of series with the numbers (B,)."""
        known, x, _ = self._centred(values)
        own = self.weights[series.clamp_max(len(self.weights) - 1)]
        steps = list(x.unbind(1))
        for _ in range(self.horizon):
            steps.append((torch.stack([steps[-lag] for lag in self.lags], 1) * own).sum(1))
        ahead = steps[-self.horizon :]
        if self.difference:
            whole = list(known.values.unbind(1))
            for step in ahead:
                whole.append(whole[-self.difference] + step)
            ahead = whole[-self.horizon :]
        return torch.stack(ahead, 1) + known.level
