"""The settings of a forecaster, and the sizes of its windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from everstep.errors import ConfigError
from everstep.heads.mixture import GaussianMixture
from everstep.heads.numbers import Gaussian, NegativeBinomial, NumberHead, PointHead, Quantiles, StudentT
from everstep.measures.forecast_errors import LEVELS
from everstep.networks.cells_by_name import CellChoice, Find, takes_masks
from everstep.networks.layers import LayersSection, layer_problems
from everstep.networks.window_values import Level, Spread
from everstep.sections import Probability, Section, Size, Whole

HeadName = Literal["point", "quantiles", "gaussian", "student-t", "mixture", "negative-binomial"]
Decode = Literal["direct", "parallel", "encoder-decoder", "recursive"]
Weight = Literal["none", "season"]


class MemberSection(Section):
    """What a further network has otherwise than the first; null: the same."""

    cell: CellChoice | None = None
    """as model.cell"""
    hidden_size: Size | None = None
    """as model.hidden_size"""
    dropout: Probability | None = None
    """as model.dropout"""
    decode: Decode | None = None
    """as model.decode"""
    weight: Weight | None = None
    """as model.weight"""

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}


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
    projection: bool = True
    """a linear map of a segment's numbers to hidden_size ones before the cells; false: the cells read the numbers"""
    level: Level = "last"
    """subtracted from a window and its targets: none, its last value, or its mean; season: from the inputs the last
    value, from the targets the values of the last season, repeated"""
    smoothing: Literal["none", "learned"] = "none"
    """learned: the level at the end of the window and the season at each step are those of exponential smoothing, with
    learned weights for each training series (ES-RNN, Smyl 2020); they are subtracted in place of `level`"""
    spread: Spread = "window"
    """divides both; none: 1; window: the standard deviation of the window; mean: the mean of its absolute values"""
    weight: Weight = "none"
    """weight of the loss of a window; season: 1 over its mean seasonal difference, at most 20, which weights errors as
    MASE does"""
    decode: Decode = "parallel"
    """direct: a linear map from the last output; parallel: one step of the cells for each segment ahead, each from the
    state after the window; encoder-decoder: the cells continue over the segments ahead; recursive: they read their own
    medians"""
    masks: bool = True
    """where values are missing, the cells read which, and the steps since the last known value, beside that value;
    false: that value alone (forward fill)"""
    highway: bool = False
    """adds a linear map from the window to the horizon (as in LSTNet, Lai 2018); its initial weights are those of a
    ridge regression with head: point, else zero; the output layer of the cells starts at zero"""
    lags: tuple[Size, ...] = ()
    """lags of a linear autoregression of each training series, which a ridge regression fits before training and whose
    forecast is mixed into the network's; []: none"""
    lags_difference: Whole = 0
    """d: the autoregression is one of the differences y_t − y_{t−d}; 0: of y_t less the mean of the window"""
    lags_share: Probability = 0.5
    """share s of the autoregression: its forecast a moves quantiles q with median m to q + s (a − m)"""
    embedding_size: Whole = 0
    """size of the learned embedding of each training series; 0: none"""
    head: HeadName = "quantiles"
    """point; quantiles 0.05, 0.1, 0.2 … 0.9, 0.95; or the distribution of each step; mixture: of three Gaussians"""
    error: Literal["mse", "mae", "huber"] = "mse"
    """the loss of head: point"""
    members: Annotated[int, Field(ge=1, le=100)] | tuple[MemberSection, ...] = 1
    """number of networks, with weights of their own, that learn side by side and whose mean is the forecast; it costs
    that many times the time. A list: what each network after the first has otherwise, such as {decode: direct}"""
    bands: Literal["head", "errors"] = "head"
    """what quantiles are: head: those of its distribution (point has none: of errors); errors: those of the errors of
    the mean at each step ahead on the validation split"""

    @property
    def measured(self) -> bool:
        """Whether quantiles are those of errors on the validation split."""
        return self.head == "point" or self.bands == "errors"

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of layers, windows that are not whole segments, and options that the head does not support."""
        yield from super().disagreements()
        if self.window is not None and self.segment is not None and self.window % self.segment:
            yield "window", f"expected a multiple of segment ({self.segment}); got {self.window}"
        if self.head == "negative-binomial" and self.level != "none":
            yield "level", f"expected none beside head: negative-binomial, since counts have no shift; got {self.level}"
        if self.smoothing == "learned":
            if self.level != "last":
                yield "level", f"expected last beside smoothing: learned, which takes its place; got {self.level}"
            if self.head == "negative-binomial" or self.decode == "recursive":
                yield "smoothing", "expected none beside head: negative-binomial and decode: recursive"
        if self.highway and self.head == "negative-binomial":
            yield "highway", "expected false beside head: negative-binomial"
        if self.lags and self.head == "negative-binomial":
            yield "lags", f"expected [] beside head: negative-binomial, since counts have no shift; got {self.lags}"
        if self.lags_difference and not self.lags:
            yield "lags_difference", f"expected 0 without lags; got {self.lags_difference}"
        if self.bands == "errors" and self.head == "negative-binomial":
            yield "bands", "expected head beside head: negative-binomial, whose values are counts; got errors"
        if self.members not in (1, ()) and (self.head == "mixture" or self.smoothing == "learned"):
            yield "members", f"expected 1 beside head: mixture and smoothing: learned; got {self.members}"
        try:
            self.further()
        except ConfigError as error:
            yield "members", str(error)
        if self.error != "mse" and self.head != "point":
            yield "error", f"expected mse where head is not point; got {self.error}"

    def problems(self, find: Find) -> Iterator[str]:
        """Cells that cannot be made, and layers above a cell of values, masks and times."""
        found = [line for one in (self, *self.further()) for line in layer_problems(one, 9, find)]
        yield from dict.fromkeys(found)
        if not found and self.layers > 1 and takes_masks(self.cell, find):
            yield f"model.layers: expected 1 beside a cell whose input is [x; mask; delta]; got {self.layers}"

    def further(self) -> list[ForecasterSection]:
        """The sections of the networks after the first.

        Raises:
            ConfigError: what a member has otherwise does not go together with the rest.
        """
        alone = self.model_copy(update={"members": 1, "lags": (), "lags_difference": 0})
        if isinstance(self.members, int):
            return [alone] * (self.members - 1)
        given = [dict(member) for member in self.members]
        return [alone.replace(**{key: value for key, value in one.items() if value is not None}) for one in given]

    def make_head(self) -> NumberHead:
        """A new head."""
        if self.head == "point":
            return PointHead(self.error)
        if self.head == "quantiles":
            return Quantiles(LEVELS)
        kinds = {"gaussian": Gaussian, "student-t": StudentT, "mixture": GaussianMixture}
        return {**kinds, "negative-binomial": NegativeBinomial}[self.head]()


class WindowShape(NamedTuple):
    """The sizes of a network's inputs and outputs.

    Attributes:
        window, horizon, segment, season: in steps; the window is a multiple of the segment.
        past, future: the number of covariates of each kind; static ones and the calendar count as future ones.
        series: the number of training series.
        gaps: whether values may be missing.
        passed: the place of the two times of irregular series among the future covariates; -1: a grid.
    """

    window: int
    horizon: int
    segment: int
    season: int
    past: int
    future: int
    series: int
    gaps: bool
    passed: int = -1

    @property
    def ahead(self) -> int:
        """The number of segments in the horizon, rounded up."""
        return -(-self.horizon // self.segment)


def checked_sizes(section: ForecasterSection, season: int) -> tuple[int, int, int]:
    """The window, the horizon and the segment in steps: from the recipe, or else from the season.

    >>> checked_sizes(ForecasterSection(), 12), checked_sizes(ForecasterSection(horizon=5), 1)
    ((36, 12, 12), (15, 5, 1))

    Raises:
        ConfigError: the window is not a multiple of the segment, or `level: season` has no season within the window, or
            `lags` reach further back.
    """
    horizon = section.horizon or (season if season > 1 else 12)
    segment = section.segment or (season if 1 < season <= 48 else 1)
    window = section.window or -(-max(3 * horizon, 3 * season) // segment) * segment
    if window % segment:
        raise ConfigError(f"model.window: expected a multiple of the segment ({segment}, model.segment); got {window}")
    if section.smoothing == "learned" and season > window:
        raise ConfigError(f"model.smoothing: expected a window of at least a season ({season}); got {window}")
    if section.level == "season" and not 1 < season <= window:
        raise ConfigError(
            f"model.level: expected a season of at most the window ({window}) beside season; got {season}"
        )
    reach = max(section.lags, default=0) + section.lags_difference
    if reach > window:
        raise ConfigError(
            f"model.lags: expected lags, plus lags_difference, of at most the window ({window}); got {reach}"
        )
    return window, horizon, segment
