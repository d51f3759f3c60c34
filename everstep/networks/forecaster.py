"""p(what follows | a window of a series): normalisation, segments, cells, a head over the whole horizon."""

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
from everstep.rivals.lag_ridge import LagRidge
from everstep.sections import Size, Whole
from everstep.state import State, map_state

FITTED, PENALTY = 50_000, 1e-4
"""Training windows that the linear map begins with, and its λ beside the mean square of a lag."""
HeadName = Literal["point", "quantiles", "gaussian", "student-t", "negative-binomial"]


class ForecasterSection(LayersSection):
    """The network: what is read of a window, cells, how the horizon is decoded, what is said of each step."""

    cell: CellChoice = "GRU"
    """any exported cell, {type: NAME, option: value}, a list (the tree of an ExpressionCell), or FILE.py:NAME"""
    hidden_size: Size | tuple[Size, ...] = 64
    """units of each layer; a list: one size a layer"""
    horizon: Size | None = None
    """steps that are predicted; null: one season of the data, or 12 where it has none"""
    window: Size | None = None
    """steps that are read before them; null: three horizons or seasons, whichever is more"""
    segment: Size | None = None
    """steps that the cells read at once (SegRNN, Lin 2023); null: a season of at most 48, or 1 where there is none"""
    level: Level = "last"
    """what is subtracted from a window and its targets: its last value, or its mean; season: from targets those of the
    last season, which come again and again"""
    spread: Literal["none", "window"] = "window"
    """what both are divided by; window: the standard deviation of the window"""
    weight: Literal["none", "season"] = "none"
    """of the loss of a window; season: 1 over the mean seasonal difference in it, at most 20, so that errors count as
    they do in MASE"""
    decode: Literal["direct", "parallel", "encoder-decoder", "recursive"] = "parallel"
    """direct: a linear map from the last output; parallel: each segment ahead is a step of the cells from the state
    after the window; encoder-decoder: the cells run on over the segments ahead; recursive: they read their own
    medians"""
    highway: bool = False
    """a linear map from the window to the horizon is added (as in LSTNet, Lai 2018); for head: point it begins as a
    ridge regression, else with nothing, as the cells do"""
    embedding_size: Whole = 0
    """features that each series of the training data has of its own; 0: all series are alike"""
    head: HeadName = "quantiles"
    """point; quantiles 0.05, 0.1, 0.2 … 0.9, 0.95; or the distribution of each step"""
    error: Literal["mse", "mae", "huber"] = "mse"
    """of head: point"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of layers, windows that are not whole segments, and heads that levels mean nothing to."""
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
        """A cell that cannot be made."""
        yield from layer_problems(self, 8, find)

    def make_head(self) -> NumberHead:
        """The head."""
        if self.head == "point":
            return PointHead(self.error)
        if self.head == "quantiles":
            return Quantiles(LEVELS)
        return {"gaussian": Gaussian, "student-t": StudentT, "negative-binomial": NegativeBinomial}[self.head]()


class WindowShape(NamedTuple):
    """Sizes of what a network reads and says.

    Attributes:
        window, horizon, segment, season: steps; the window is whole segments.
        past, future: covariates.
        series: of the training data, that have an embedding.
        gaps: whether values may be missing, so that the network is told which are.
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
        """Segments of the horizon."""
        return -(-self.horizon // self.segment)


class Forecaster(nn.Module):
    """Window → values about a level → segments → cells → the parameters of each step's distribution.

    Args:
        section: a recipe's `model`.
        shape: sizes.
        find: finds cells of the user's own.

    Attributes:
        residuals: (H, 11) quantiles, at `LEVELS`, of target − mean on held-out windows over their spread, for heads
            without a distribution; NaN until they are measured.
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
        self.embedding = nn.Embedding(shape.series + 1, section.embedding_size) if section.embedding_size else None
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
        """Let the linear map begin as the ridge regression of some training windows, where the head is a point."""
        if self.highway is None or self.section.head != "point":
            return
        fitted, every = LagRidge(), max(1, windows.number // FITTED)
        chosen = np.arange(0, windows.number, every)
        for start in range(0, len(chosen), 1024):
            batch = windows.made_of(chosen[start : start + 1024])
            known = self._normalised(batch.values.double())
            target = known.of_targets(batch.target.double())
            whole = ~target.isnan().any(1)
            fitted.add(known.values[whole].numpy(), target[whole].numpy())
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
        """Segment after segment: in training after the segments that came, else after the medians of those foretold."""
        shape = self.shape
        beside = self._own(batch)[:, None]
        later = self._padded(batch.future[:, shape.window :])
        came = self._padded((batch.target - known.level) / known.spread) if self.training else None
        about = self._padded(((known.ahead - known.level) / known.spread).expand(-1, shape.horizon))
        ys, state = self.body(seen)
        found: list[Tensor] = []
        for place in range(shape.ahead):
            given = self.write(torch.cat([ys[:, -1:], beside.expand(-1, 1, -1)], 2))
            found.append(given.view(len(seen), shape.segment, -1))
            if place + 1 == shape.ahead:
                break
            part = slice(place * shape.segment, (place + 1) * shape.segment)
            told = self.head.predict(found[-1]) + about[:, part]
            values = told if came is None else torch.where(came[:, part].isnan(), told.detach(), came[:, part])
            ones = torch.ones_like(values)
            nothing = values.new_zeros(*values.shape, shape.past)
            ys, state = self.body(self._segments(values, ones, 0 * ones, nothing, later[:, part]), state)
        return torch.cat(found, 1)

    def _segments(self, values: Tensor, there: Tensor, since: Tensor, past: Tensor, future: Tensor) -> Tensor:
        """What the cells read: (B, steps / segment, size)."""
        parts = [values, there, since] if self.shape.gaps else [values]
        steps = torch.cat([torch.stack(parts, 2), past, future], 2)
        return self.read(steps.reshape(len(steps), -1, self.shape.segment * steps.shape[2]))  # type: ignore[no-any-return]

    def _ahead(self, future: Tensor) -> Tensor:
        """Covariates of each segment ahead, (B, segments, segment · F)."""
        return self._padded(future).reshape(len(future), self.shape.ahead, -1)

    def _padded(self, steps: Tensor) -> Tensor:
        """(B, H, …) with zeros up to whole segments."""
        more = self.shape.ahead * self.shape.segment - steps.shape[1]
        return torch.cat([steps, steps.new_zeros(len(steps), more, *steps.shape[2:])], 1) if more else steps

    def _own(self, batch: WindowBatch) -> Tensor:
        """What each series has of its own, (B, embedding_size); a series that is unknown has the last one."""
        if self.embedding is None:
            return batch.values.new_zeros(len(batch.series), 0)
        return self.embedding(batch.series)  # type: ignore[no-any-return]

    def losses(self, batch: WindowBatch) -> Tensor:
        """The head's loss of each window, (B,)."""
        ys, known = self(batch)
        if self.head.in_data_units:
            return self.head.loss(self.head.rescaled(ys, known.ahead, known.spread), batch.target)
        found = self.head.loss(ys, known.of_targets(batch.target))
        return found if self.section.weight == "none" else found * seasonal_weight(known, self.shape.season)

    @torch.no_grad()
    def predicted(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None]:
        """The mean of each step, (B, H), and its quantiles at LEVELS, (B, H, 11), where something is known of them."""
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
        """Measure `residuals` on held-out windows, where the head has no distribution."""
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
    """Each row as many times, side by side."""
    return map_state(lambda leaf: leaf.repeat_interleave(times, 0), state)


def _shifted(ys: Tensor, shift: Tensor, head: NumberHead) -> Tensor:
    """Distributions moved by (B, H)."""
    moved = ys.shape[2] if isinstance(head, PointHead | Quantiles) else 1
    return torch.cat([ys[..., :moved] + shift[..., None], ys[..., moved:]], 2)


def window_losses(model: Forecaster, batch: WindowBatch) -> Iterator[Loss]:
    """One loss a batch: that of the head, a row a window."""
    found = model.losses(batch)
    yield Loss(found, found.detach())


def checked_sizes(section: ForecasterSection, season: int) -> tuple[int, int, int]:
    """The window, the horizon and the segment: those of the recipe, else by the season.

    >>> checked_sizes(ForecasterSection(), 12), checked_sizes(ForecasterSection(horizon=5), 1)
    ((36, 12, 12), (15, 5, 1))

    Raises:
        ConfigError: the window is not whole segments.
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
