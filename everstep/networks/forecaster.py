"""p(horizon | window of a series): normalisation, segments, cells and a head over the whole horizon."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from everstep.data.windows import WindowBatch, Windows
from everstep.heads.numbers import NumberHead, Quantiles
from everstep.heads.tails import log_tails
from everstep.learn.objective import Loss
from everstep.measures.forecast_errors import LEVELS
from everstep.networks.cells_by_name import Find, no_code, takes_masks
from everstep.networks.forecaster_section import ForecasterSection, WindowShape
from everstep.networks.layers import initialise, stack_of
from everstep.networks.learned_smoothing import LearnedSmoothing
from everstep.networks.series_lags import SeriesLags
from everstep.networks.window_values import Normalised, normalised, seasonal_weight, since_seen
from everstep.rivals.lag_ridge import LagRidge, carried
from everstep.state import State, map_state

FITTED, PENALTY = 50_000, 1e-4
"""Training windows that the highway's initial ridge regression uses, and its λ relative to the mean square of a lag."""


class Forecaster(nn.Module):
    """Window → normalised values → segments → cells → the parameters of the distribution of each step.

    Args:
        section: a recipe's `model`.
        shape: the sizes.
        find: finds the user's own cells.

    Attributes:
        others: the further networks of `section.members`.
        residuals: for heads without a distribution, and beside `bands: errors`, the quantiles at `LEVELS`, (H, 11), of
            (target − mean) / spread on held-out windows; NaN until `calibrate` measures them. Else None.
    """

    residuals: Tensor | None

    def __init__(self, section: ForecasterSection, shape: WindowShape, find: Find = no_code):
        super().__init__()
        self.section, self.shape = section, shape
        self.head = section.make_head()
        self.masked = takes_masks(section.cell, find)
        self.flagged = shape.gaps and section.masks and not self.masked
        values = 3 if self.flagged else 1
        read = shape.segment * (values + shape.past + shape.future)
        plain = self.masked or not section.projection
        size = read if plain else section.hidden_sizes[0]
        self.read = nn.Identity() if plain else nn.Linear(read, size)
        self.body = stack_of(section, 3 * size if self.masked else size, find)
        features = self.body.output_size
        learned = section.smoothing == "learned"
        self.smoothing = LearnedSmoothing(shape.series, shape.season, shape.horizon) if learned else None
        self.lags: SeriesLags | None = None
        if section.lags:
            self.lags = SeriesLags(shape.series, section.lags, section.lags_difference, shape.horizon)
        self.embedding = nn.Embedding(shape.series, section.embedding_size) if section.embedding_size else None
        beside = section.embedding_size
        outputs = self.head.size * shape.segment
        if section.decode == "direct":
            features += beside + shape.horizon * shape.future
            outputs = self.head.size * shape.horizon
        elif section.decode == "recursive":
            features += beside
        else:
            self.position = nn.Parameter(torch.randn(shape.ahead, size) * 0.1)
            self.ask = nn.Linear(beside + shape.segment * shape.future, size) if beside + shape.future else None
        self.write = nn.Linear(features, outputs)
        self.highway = nn.Linear(shape.window, shape.horizon) if section.highway else None
        empty = torch.full((shape.horizon, len(LEVELS)), torch.nan)
        self.register_buffer("residuals", empty if section.measured else None)
        initialise(section, self)
        if self.highway is not None:
            for module in (self.highway, self.write):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        self.others = nn.ModuleList(Forecaster(one, shape, find) for one in section.further())

    @property
    def _members(self) -> tuple[Forecaster, ...]:
        return (self, *cast("Iterable[Forecaster]", self.others))

    def _normalised(self, batch: WindowBatch) -> Normalised:
        if self.smoothing is not None:
            return self.smoothing(batch.values, batch.series, self.section.spread)  # type: ignore[no-any-return]
        ahead = (self.shape.season, self.shape.horizon)
        return normalised(batch.values, self.section.level, self.section.spread, ahead)

    @torch.no_grad()
    def begin(self, windows: Windows) -> None:
        """Fit the autoregressions of `lags` to training windows.

        With the head "point" also initialise the highway with a ridge regression on them.
        """
        if self.lags is not None:
            self.lags.fit(windows)
        if self.highway is None or self.section.head != "point":
            return
        fitted, every = LagRidge(), max(1, windows.number // FITTED)
        chosen = np.arange(0, windows.number, every)
        for start in range(0, len(chosen), 1024):
            batch = windows.made_of(chosen[start : start + 1024])
            known = self._normalised(replace(batch, values=batch.values.double()))
            target = known.of_targets(batch.target.double())
            kept = ~target.isnan().all(1)
            fitted.add(known.values[kept].numpy(), carried(target[kept].numpy()))
        if fitted.count:
            weight = torch.from_numpy(fitted.solve(PENALTY))
            for member in self._members:
                if member.highway is not None:
                    member.highway.weight.copy_(weight)

    def forward(self, batch: WindowBatch) -> tuple[Tensor, Normalised]:
        """The parameters of each step, (B, H, parameters), of normalised values, and the normalisation.

        Of several members the mean: of quantiles that is the mean of their quantile functions (Vincent 1912). Then the
        autoregressions of `lags` move it.
        """
        ys, known = self._alone(batch)
        if self.others:
            ys = torch.stack([ys, *(other._alone(batch)[0] for other in self._members[1:])]).mean(0)
        if self.lags is not None:
            found = known.of_targets(self.lags(batch.values, batch.series))
            ys = _shifted(ys, self.section.lags_share * (found - self._medians(ys, known.spread)), self.head)
        return ys, known

    def _alone(self, batch: WindowBatch) -> tuple[Tensor, Normalised]:
        known = self._normalised(batch)
        ys = self._decoded(batch, known)[:, : self.shape.horizon]
        if self.highway is not None:
            ys = _shifted(ys, self.highway(known.values), self.head)
        return ys, known

    def _decoded(self, batch: WindowBatch, known: Normalised) -> Tensor:
        """(B, segments ahead × segment, parameters)."""
        shape, section = self.shape, self.section
        times = self._times(batch.future)
        begun = None if times is None else times[:, : shape.window]
        seen = self._segments(
            known.values, known.there, known.since, batch.past, batch.future[:, : shape.window], begun
        )
        if section.decode == "recursive":
            return self._run_on(batch, known, seen, times)
        ys, state = self.body(seen)
        beside = self._own(batch)
        ahead = self._ahead(batch.future[:, shape.window :])
        if section.decode == "direct":
            flat = batch.future[:, shape.window :].flatten(1)
            found: Tensor = self.write(torch.cat([ys[:, -1], beside, flat], 1))
            return found.view(found.shape[0], shape.horizon, -1)
        asked = self.position.expand(seen.shape[0], -1, -1)
        if self.ask is not None:
            asked = asked + self.ask(torch.cat([beside[:, None].expand(-1, shape.ahead, -1), ahead], 2))
        if self.masked:
            asked = torch.cat([asked, torch.ones_like(asked), self._since_state(times, asked)], 2)
        if section.decode == "encoder-decoder":
            ys, _ = self.body(asked, state)
        else:
            ys, _ = self.body(asked.flatten(0, 1)[:, None], _repeated(state, shape.ahead))
            ys = ys.view(seen.shape[0], shape.ahead, -1)
        return self.write(ys).view(seen.shape[0], shape.ahead * shape.segment, -1)  # type: ignore[no-any-return]

    def _times(self, future: Tensor) -> Tensor | None:
        """The time of each step from the last input, (B, W + H), as a cell of times reads it; None on a grid."""
        if not self.masked or self.shape.passed < 0:
            return None
        away = future[..., self.shape.passed + 1].exp() - 1
        return torch.cat([-away[:, : self.shape.window], away[:, self.shape.window :]], 1)

    def _since_state(self, times: Tensor | None, asked: Tensor) -> Tensor:
        """The time from the state that an input ahead finds to the first step of its segment, like `asked`."""
        if times is None:
            return torch.zeros_like(asked)
        begin = times[:, self.shape.window :: self.shape.segment]
        if self.section.decode == "encoder-decoder":
            begin = torch.cat([begin[:, :1], begin.diff(dim=1)], 1)
        return begin[..., None].expand_as(asked)

    def _run_on(self, batch: WindowBatch, known: Normalised, seen: Tensor, times: Tensor | None) -> Tensor:
        """Decode segment by segment. The cells read the true segments in training, else their own medians."""
        shape = self.shape
        beside = self._own(batch)[:, None]
        later = self._padded(batch.future[:, shape.window :])
        came = self._padded((batch.target - known.level) / known.spread) if self.training else None
        about = self._padded(((known.ahead - known.level) / known.spread).expand(-1, shape.horizon))
        if self.highway is not None:
            about = about + self._padded(self.highway(known.values))
        ys, state = self.body(seen)
        found: list[Tensor] = []
        for place in range(shape.ahead):
            given = self.write(torch.cat([ys[:, -1:], beside.expand(-1, 1, -1)], 2))
            found.append(given.view(seen.shape[0], shape.segment, -1))
            if place + 1 == shape.ahead:
                break
            part = slice(place * shape.segment, (place + 1) * shape.segment)
            told = self._medians(found[-1], known.spread) + about[:, part]
            values = told if came is None else torch.where(came[:, part].isnan(), told.detach(), came[:, part])
            ones = torch.ones_like(values)
            nothing = values.new_zeros(*values.shape, shape.past)
            passed = None if times is None else _since_segment(times[:, : shape.window + part.stop], shape.segment)
            inputs = self._segments(values, ones, 0 * ones, nothing, later[:, part], None, passed)
            ys, state = self.body(inputs, state)
        return torch.cat(found, 1)

    def _medians(self, ys: Tensor, spread: Tensor) -> Tensor:
        """The normalised median of each step, (B, steps); that of counts is one in units of the data, over `spread`."""
        if not self.head.in_data_units:
            return self.head.predict(ys)
        return self.head.predict(self.head.rescaled(ys, torch.zeros_like(spread), spread)) / spread

    def _segments(
        self, values: Tensor, there: Tensor, since: Tensor, past: Tensor, future: Tensor,
        times: Tensor | None = None, passed: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The inputs of the cells, (B, steps / segment, size).

        A cell of times also reads the times since its values were known: from `times` (B, steps), or `passed` (B,
        steps), if given; else it counts segments.
        """
        parts = [values, there, since] if self.flagged else [values]
        steps = torch.cat([torch.stack(parts, 2), past, future], 2)
        inputs: Tensor = self.read(steps.reshape(steps.shape[0], -1, self.shape.segment * steps.shape[2]))
        if not self.masked:
            return inputs
        seen = torch.cat([there[..., None], torch.ones_like(past), torch.ones_like(future)], 2).view_as(inputs)
        if passed is not None:
            return torch.cat([inputs, seen, passed[..., None].expand_as(steps).reshape(inputs.shape)], 2)
        when = None if times is None else times[..., None].expand_as(steps).reshape(inputs.shape)
        return torch.cat([inputs, seen, since_seen(seen, when)], 2)

    def _ahead(self, future: Tensor) -> Tensor:
        """Covariates of each segment ahead, (B, segments, segment · F)."""
        return self._padded(future).reshape(future.shape[0], self.shape.ahead, -1)

    def _padded(self, steps: Tensor) -> Tensor:
        """Pad (B, H, …) with zeros to a multiple of the segment."""
        more = self.shape.ahead * self.shape.segment - steps.shape[1]
        return torch.cat([steps, steps.new_zeros(steps.shape[0], more, *steps.shape[2:])], 1) if more else steps

    def _own(self, batch: WindowBatch) -> Tensor:
        """The embedding of each series, (B, embedding_size); of unknown series the mean of all."""
        if self.embedding is None:
            return batch.values.new_zeros(batch.series.shape[0], 0)
        own = self.embedding(batch.series.clamp_max(self.shape.series - 1))
        return torch.where((batch.series < self.shape.series)[:, None], own, self.embedding.weight.mean(0))

    def losses(self, batch: WindowBatch) -> Tensor:
        """The head's loss of each window, (B,); in training the mean over the members, else that of the forecast."""
        if self.training:
            return torch.stack([member._loss(batch, *member._alone(batch)) for member in self._members]).mean(0)
        return self._loss(batch, *self(batch))

    def _loss(self, batch: WindowBatch, ys: Tensor, known: Normalised) -> Tensor:
        if self.head.in_data_units:
            return self.head.loss(self.head.rescaled(ys, known.ahead, known.spread), batch.target)
        found = self.head.loss(ys, known.of_targets(batch.target))
        if self.section.weight == "none":
            return found
        if self.smoothing is not None:  # the window with its season
            known = normalised(batch.values, "last", self.section.spread)
        return found * seasonal_weight(known, self.shape.season)

    @property
    def law_size(self) -> int:
        """K, the numbers that `laws` has for each step."""
        return self.head.size + 2 if self.residuals is None else len(LEVELS)

    @torch.no_grad()
    def predicted(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None]:
        """The mean of each step, (B, H), and its quantiles at LEVELS, (B, H, 11), or None before `calibrate`."""
        mean, quantiles, _ = self.laws(batch)
        return mean, quantiles

    @torch.no_grad()
    def laws(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None, Tensor]:
        """`predicted`, and the distribution of each step, (B, H, K), for `surprise`.

        K numbers are the head's parameters of normalised values, their shift and their scale; or the quantiles if they
        are those of errors (NaN before `calibrate`). The head's limits of spreads hold for normalised values.
        """
        ys, known = self(batch)
        shift, scale = (part.expand(ys.shape[:2])[..., None] for part in (known.ahead, known.spread))
        if self.head.in_data_units:
            ys = self.head.rescaled(ys, known.ahead, known.spread)
            shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
        mean = self.head.mean(ys) * scale[..., 0] + shift[..., 0]
        if self.residuals is None:
            law = torch.cat([ys, shift, scale], -1)
            return mean, self.quantiles_of(law, LEVELS), law
        bands = mean[..., None] + self.residuals * scale
        return mean, None if self.residuals.isnan().any() else bands, bands

    @torch.no_grad()
    def quantiles_of(self, law: Tensor, levels: Sequence[float]) -> Tensor:
        """Quantiles at any levels of the distributions of `laws`, (B, H, levels)."""
        if self.residuals is not None:
            return Quantiles(LEVELS).to(law.device).quantiles(law, levels)
        return self.head.quantiles(law[..., :-2], levels) * law[..., -1:] + law[..., -2:-1]

    @torch.no_grad()
    def surprise(self, law: Tensor, values: Tensor) -> Tensor:
        """−log p of values (B,) under the distributions `law` (B, K), (B,) float64; NaN if either is.

        p is the two-sided tail probability min(1, 2 min(P(v ≤ value), P(v ≥ value))). Under a right distribution of
        real numbers the score is above s with probability e^−s, whatever the unit.
        """
        if self.residuals is None:
            normal = (values - law[:, -2]) / law[:, -1]
            tails = self.head.log_tails(law[:, None, :-2], normal[:, None])[:, 0]
        else:
            tails = log_tails(law, torch.tensor(LEVELS, device=law.device), values)
        return (-(tails.amin(-1) + math.log(2))).clamp_min(0)

    @torch.no_grad()
    def calibrate(self, windows: Windows) -> None:
        """Measure `residuals` on held-out windows. Does nothing if quantiles are those of the head."""
        if self.residuals is None:
            return
        self.eval()
        found = []
        for index in range(len(windows)):
            batch = windows.batch(0, index).to(self.write.weight.device)
            ys, known = self(batch)
            found.append(known.of_targets(batch.target) - self.head.mean(ys))
        errors = torch.cat(found).cpu().numpy()
        if not np.isnan(errors).all(0).any():
            self.residuals.copy_(torch.from_numpy(np.nanquantile(errors, LEVELS, axis=0).T))


def _repeated(state: State, times: int) -> State:
    """Repeat each row `times` times in a row, as `repeat_interleave` does."""
    return map_state(lambda leaf: leaf.repeat_interleave(times, 0), state)


def _since_segment(times: Tensor, segment: int) -> Tensor:
    """The time from each step of the segment before the last to that of the last, (B, segment)."""
    return times[:, -segment:] - times[:, -2 * segment : -segment]


def _shifted(ys: Tensor, shift: Tensor, head: NumberHead) -> Tensor:
    """The parameters of the distributions shifted by `shift`, (B, H)."""
    moved = head.locations
    return torch.cat([ys[..., :moved] + shift[..., None], ys[..., moved:]], 2)


def window_losses(model: Forecaster, batch: WindowBatch) -> Iterator[Loss]:
    """One `Loss` per batch: the loss of each window, (B,)."""
    found = model.losses(batch)
    yield Loss(found, found.detach())
