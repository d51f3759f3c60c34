"""p(horizon | window of a series): normalisation, segments, cells and a head over the whole horizon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from everstep.data.windows import WindowBatch, Windows
from everstep.errors import ConfigError
from everstep.heads.numbers import Gaussian, NegativeBinomial, NumberHead, PointHead, Quantiles, StudentT
from everstep.learn.objective import Loss
from everstep.measures.forecast_errors import LEVELS
from everstep.networks.cells_by_name import CellChoice, Find, no_code
from everstep.networks.layers import LayersSection, initialise, layer_problems, stack_of
from everstep.networks.window_values import Level, Normalised, normalised, seasonal_weight
from everstep.rivals.lag_ridge import LagRidge, carried
from everstep.sections import Size, Whole
from everstep.state import State, map_state

FITTED, PENALTY = 50_000, 1e-4
"""Training windows that the highway's initial ridge regression uses, and its λ relative to the mean square of a lag."""
HeadName = Literal["point", "quantiles", "gaussian", "student-t", "negative-binomial"]


class ForecasterSection(LayersSection):
    """The network: window, segments, cells, decoding of the horizon, head."""

    cell: CellChoice = "GRU"
    """any exported cell, {type: NAME, option: value}, a list (the tree of an ExpressionCell), or FILE.py:NAME"""
    hidden_size: Size | tuple[Size, ...] = 64
    """units of each layer; a list: one size per layer"""
    horizon: Size | None = None
    """number of predicted steps; null: one season of the data, or 12 without a season"""
    window: Size | None = None
    """number of input steps; null: three horizons or seasons, whichever is longer, rounded up to whole segments"""
    segment: Size | None = None
    """steps that the cells read as one input (SegRNN, Lin 2023); null: one season of 2 to 48 steps, else 1"""
    level: Level = "last"
    """subtracted from a window and its targets: none, its last value, or its mean; season: from the inputs the last
    value, from the targets the values of the last season, repeated"""
    spread: Literal["none", "window"] = "window"
    """divides both; none: 1; window: the standard deviation of the window"""
    weight: Literal["none", "season"] = "none"
    """weight of the loss of a window; season: 1 over its mean seasonal difference, at most 20, which weights errors as
    MASE does"""
    decode: Literal["direct", "parallel", "encoder-decoder", "recursive"] = "parallel"
    """direct: a linear map from the last output; parallel: one step of the cells for each segment ahead, each from the
    state after the window; encoder-decoder: the cells continue over the segments ahead; recursive: they read their own
    medians"""
    highway: bool = False
    """adds a linear map from the window to the horizon (as in LSTNet, Lai 2018); its initial weights are those of a
    ridge regression with head: point, else zero; the output layer of the cells starts at zero"""
    embedding_size: Whole = 0
    """size of the learned embedding of each training series; 0: none"""
    head: HeadName = "quantiles"
    """point; quantiles 0.05, 0.1, 0.2 … 0.9, 0.95; or the distribution of each step"""
    error: Literal["mse", "mae", "huber"] = "mse"
    """the loss of head: point"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of layers, windows that are not whole segments, and options that the head does not support."""
        yield from super().disagreements()
        if self.window is not None and self.segment is not None and self.window % self.segment:
            yield "window", f"expected a multiple of segment ({self.segment}); got {self.window}"
        if self.head == "negative-binomial" and self.level != "none":
            yield "level", f"expected none beside head: negative-binomial, since counts have no shift; got {self.level}"
        if self.highway and self.head == "negative-binomial":
            yield "highway", "expected false beside head: negative-binomial"
        if self.error != "mse" and self.head != "point":
            yield "error", f"expected mse where head is not point; got {self.error}"

    def problems(self, find: Find) -> Iterator[str]:
        """Cells that cannot be made."""
        yield from layer_problems(self, 8, find)

    def make_head(self) -> NumberHead:
        """A new head."""
        if self.head == "point":
            return PointHead(self.error)
        if self.head == "quantiles":
            return Quantiles(LEVELS)
        return {"gaussian": Gaussian, "student-t": StudentT, "negative-binomial": NegativeBinomial}[self.head]()


class WindowShape(NamedTuple):
    """The sizes of a network's inputs and outputs.

    Attributes:
        window, horizon, segment, season: in steps; the window is a multiple of the segment.
        past, future: the number of covariates of each kind.
        series: the number of training series.
        gaps: whether values may be missing; the network then also reads which are.
    """

    window: int
    horizon: int
    segment: int
    season: int
    past: int
    future: int
    series: int
    gaps: bool

    @property
    def ahead(self) -> int:
        """The number of segments in the horizon, rounded up."""
        return -(-self.horizon // self.segment)


class Forecaster(nn.Module):
    """Window → normalised values → segments → cells → the parameters of the distribution of each step.

    Args:
        section: a recipe's `model`.
        shape: the sizes.
        find: finds the user's own cells.

    Attributes:
        residuals: for heads without a distribution, the quantiles at `LEVELS`, (H, 11), of (target − mean) / spread on
            held-out windows; NaN until `calibrate` measures them. None for other heads.
    """

    residuals: Tensor | None

    def __init__(self, section: ForecasterSection, shape: WindowShape, find: Find = no_code):
        super().__init__()
        self.section, self.shape = section, shape
        self.head = section.make_head()
        size = section.hidden_sizes[0]
        values = 3 if shape.gaps else 1
        self.read = nn.Linear(shape.segment * (values + shape.past + shape.future), size)
        self.body = stack_of(section, size, find)
        features = self.body.output_size
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
        self.register_buffer("residuals", None if self.head.has_bands else empty)
        initialise(section, self)
        if self.highway is not None:
            for module in (self.highway, self.write):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def _normalised(self, values: Tensor) -> Normalised:
        ahead = (self.shape.season, self.shape.horizon)
        return normalised(values, self.section.level, self.section.spread, ahead)

    @torch.no_grad()
    def begin(self, windows: Windows) -> None:
        """Initialise the highway with a ridge regression on training windows. Only with the head "point"."""
        if self.highway is None or self.section.head != "point":
            return
        fitted, every = LagRidge(), max(1, windows.number // FITTED)
        chosen = np.arange(0, windows.number, every)
        for start in range(0, len(chosen), 1024):
            batch = windows.made_of(chosen[start : start + 1024])
            known = self._normalised(batch.values.double())
            target = known.of_targets(batch.target.double())
            kept = ~target.isnan().all(1)
            fitted.add(known.values[kept].numpy(), carried(target[kept].numpy()))
        if fitted.count:
            self.highway.weight.copy_(torch.from_numpy(fitted.solve(PENALTY)))

    def forward(self, batch: WindowBatch) -> tuple[Tensor, Normalised]:
        """The parameters of each step, (B, H, parameters), of normalised values, and the normalisation."""
        known = self._normalised(batch.values)
        ys = self._decoded(batch, known)[:, : self.shape.horizon]
        if self.highway is not None:
            ys = _shifted(ys, self.highway(known.values), self.head)
        return ys, known

    def _decoded(self, batch: WindowBatch, known: Normalised) -> Tensor:
        """(B, segments ahead × segment, parameters)."""
        shape, section = self.shape, self.section
        seen = self._segments(known.values, known.there, known.since, batch.past, batch.future[:, : shape.window])
        if section.decode == "recursive":
            return self._run_on(batch, known, seen)
        ys, state = self.body(seen)
        beside = self._own(batch)
        ahead = self._ahead(batch.future[:, shape.window :])
        if section.decode == "direct":
            flat = batch.future[:, shape.window :].flatten(1)
            found: Tensor = self.write(torch.cat([ys[:, -1], beside, flat], 1))
            return found.view(len(found), shape.horizon, -1)
        asked = self.position.expand(len(seen), -1, -1)
        if self.ask is not None:
            asked = asked + self.ask(torch.cat([beside[:, None].expand(-1, shape.ahead, -1), ahead], 2))
        if section.decode == "encoder-decoder":
            ys, _ = self.body(asked, state)
        else:
            ys, _ = self.body(asked.flatten(0, 1)[:, None], _repeated(state, shape.ahead))
            ys = ys.view(len(seen), shape.ahead, -1)
        return self.write(ys).view(len(seen), shape.ahead * shape.segment, -1)  # type: ignore[no-any-return]

    def _run_on(self, batch: WindowBatch, known: Normalised, seen: Tensor) -> Tensor:
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
            found.append(given.view(len(seen), shape.segment, -1))
            if place + 1 == shape.ahead:
                break
            part = slice(place * shape.segment, (place + 1) * shape.segment)
            told = self._medians(found[-1], known.spread) + about[:, part]
            values = told if came is None else torch.where(came[:, part].isnan(), told.detach(), came[:, part])
            ones = torch.ones_like(values)
            nothing = values.new_zeros(*values.shape, shape.past)
            ys, state = self.body(self._segments(values, ones, 0 * ones, nothing, later[:, part]), state)
        return torch.cat(found, 1)

    def _medians(self, ys: Tensor, spread: Tensor) -> Tensor:
        """The normalised median of each step, (B, steps); that of counts is one in units of the data, over `spread`."""
        if not self.head.in_data_units:
            return self.head.predict(ys)
        return self.head.predict(self.head.rescaled(ys, torch.zeros_like(spread), spread)) / spread

    def _segments(self, values: Tensor, there: Tensor, since: Tensor, past: Tensor, future: Tensor) -> Tensor:
        """The inputs of the cells, (B, steps / segment, size)."""
        parts = [values, there, since] if self.shape.gaps else [values]
        steps = torch.cat([torch.stack(parts, 2), past, future], 2)
        return self.read(steps.reshape(len(steps), -1, self.shape.segment * steps.shape[2]))  # type: ignore[no-any-return]

    def _ahead(self, future: Tensor) -> Tensor:
        """Covariates of each segment ahead, (B, segments, segment · F)."""
        return self._padded(future).reshape(len(future), self.shape.ahead, -1)

    def _padded(self, steps: Tensor) -> Tensor:
        """Pad (B, H, …) with zeros to a multiple of the segment."""
        more = self.shape.ahead * self.shape.segment - steps.shape[1]
        return torch.cat([steps, steps.new_zeros(len(steps), more, *steps.shape[2:])], 1) if more else steps

    def _own(self, batch: WindowBatch) -> Tensor:
        """The embedding of each series, (B, embedding_size); of unknown series the mean of all."""
        if self.embedding is None:
            return batch.values.new_zeros(len(batch.series), 0)
        own = self.embedding(batch.series.clamp_max(self.shape.series - 1))
        return torch.where((batch.series < self.shape.series)[:, None], own, self.embedding.weight.mean(0))

    def losses(self, batch: WindowBatch) -> Tensor:
        """The head's loss of each window, (B,)."""
        ys, known = self(batch)
        if self.head.in_data_units:
            return self.head.loss(self.head.rescaled(ys, known.ahead, known.spread), batch.target)
        found = self.head.loss(ys, known.of_targets(batch.target))
        return found if self.section.weight == "none" else found * seasonal_weight(known, self.shape.season)

    @torch.no_grad()
    def predicted(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None]:
        """The mean of each step, (B, H), and its quantiles at LEVELS, (B, H, 11), or None before `calibrate`."""
        ys, known = self(batch)
        told = self.head.rescaled(ys, known.ahead, known.spread)
        mean = self.head.mean(told)
        if self.residuals is None:
            return mean, self.head.quantiles(told, LEVELS)
        if self.residuals.isnan().any():
            return mean, None
        return mean, mean[..., None] + self.residuals * known.spread[..., None]

    @torch.no_grad()
    def calibrate(self, windows: Windows) -> None:
        """Measure `residuals` on held-out windows. Does nothing if the head has a distribution."""
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


def _shifted(ys: Tensor, shift: Tensor, head: NumberHead) -> Tensor:
    """The parameters of the distributions shifted by `shift`, (B, H)."""
    moved = ys.shape[2] if isinstance(head, PointHead | Quantiles) else 1
    return torch.cat([ys[..., :moved] + shift[..., None], ys[..., moved:]], 2)


def window_losses(model: Forecaster, batch: WindowBatch) -> Iterator[Loss]:
    """One `Loss` per batch: the loss of each window, (B,)."""
    found = model.losses(batch)
    yield Loss(found, found.detach())


def checked_sizes(section: ForecasterSection, season: int) -> tuple[int, int, int]:
    """The window, the horizon and the segment in steps: from the recipe, or else from the season.

    >>> checked_sizes(ForecasterSection(), 12), checked_sizes(ForecasterSection(horizon=5), 1)
    ((36, 12, 12), (15, 5, 1))

    Raises:
        ConfigError: the window is not a multiple of the segment, or `level: season` has no season within the window.
    """
    horizon = section.horizon or (season if season > 1 else 12)
    segment = section.segment or (season if 1 < season <= 48 else 1)
    window = section.window or -(-max(3 * horizon, 3 * season) // segment) * segment
    if window % segment:
        raise ConfigError(f"model.window: expected a multiple of the segment ({segment}, model.segment); got {window}")
    if section.level == "season" and not 1 < season <= window:
        raise ConfigError(
            f"model.level: expected a season of at most the window ({window}) beside season; got {season}"
        )
    return window, horizon, segment
