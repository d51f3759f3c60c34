"""What a forecasting model learns from its data besides weights: time grid, sizes and the scaling of each series."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from everstep.data.panel import Floats, Ints, Panel
from everstep.data.readers.series import Roles, as_roles
from everstep.data.readers.time_stamps import SECOND, Frequency
from everstep.errors import DataError, RunError
from everstep.networks.forecaster_section import WindowShape
from everstep.storage.reading import json_text, parse_json, read_small, reason

Scaling = Literal["none", "mean", "standard", "median", "log"]
LARGEST = 1 << 30


@dataclass(frozen=True)
class LearnedSeries:
    """Properties of the training split that the network and prediction need.

    Attributes:
        roles: the roles of the columns.
        frequency: the time grid.
        counted: whether rows have no time stamps.
        season: the season in steps; 1: none.
        shape: the sizes of the network.
        calendar: whether the network reads calendar features.
        scaling: the kind of scaling, see `fitted_scale`.
        scales: (shift, scale) of each training series.
        covariates: the mean and the standard deviation of each covariate: past, future and static ones.
        usual_gap: the median time between neighbouring rows of irregular series; else 1.
    """

    roles: Roles
    frequency: Frequency
    counted: bool
    season: int
    shape: WindowShape
    calendar: bool
    scaling: Scaling
    scales: dict[str, tuple[float, float]]
    covariates: tuple[tuple[float, float], ...]
    usual_gap: float = 1.0

    def numbers(self, ids: tuple[str, ...]) -> Ints:
        """The training number of each series, (S,); unknown series get the number of training series."""
        known = {name: place for place, name in enumerate(self.scales) if place < self.shape.series}
        return np.array([known.get(name, self.shape.series) for name in ids], np.int64)

    def with_scales_of(self, history: Panel) -> LearnedSeries:
        """The same with the scales of unknown series, fitted to all values of a history."""
        more = {
            name: fitted_scale(history.values(place), self.scaling)
            for place, name in enumerate(history.ids)
            if name not in self.scales
        }
        return replace(self, scales=self.scales | more)

    def scales_of(self, panel: Panel) -> tuple[Floats, Floats]:
        """The shift and the scale of each series, (S,) each; of an unknown series the medians, see `usual_scale`."""
        usual = usual_scale(list(self.scales.values()))
        shift, scale = np.array([self.scales.get(name, usual) for name in panel.ids], np.float64).reshape(-1, 2).T
        return shift, scale

    def normalised(self, panel: Panel) -> Panel:
        """The panel with scaled values and covariates, as the network reads it.

        Raises:
            DataError: a value without a logarithm, with the scaling "log".
        """
        shift, scale = (np.repeat(part, panel.rows) for part in self.scales_of(panel))
        if self.scaling == "log":
            check_positive(panel)
        past, future, static = self.standardised(panel.past, panel.future, panel.static)
        target = self.scaled(panel.target, shift, scale)
        return replace(panel, target=target, past=past, future=future, static=static)

    def scaled(self, values: Floats, shift: Floats, scale: Floats) -> Floats:
        """Values in data units, as the network reads them; the inverse of `restored`."""
        found: Floats = ((np.log(values) if self.scaling == "log" else values) - shift) / scale
        return found

    def standardised(self, *kinds: Floats) -> tuple[Floats, ...]:
        """Past, future and static covariates, (…, P), (…, F) and (…, K), with mean 0 and deviation 1 in training."""
        middle, spread = np.array(self.covariates, np.float64).reshape(-1, 2).T
        ends = np.cumsum([kind.shape[-1] for kind in kinds])
        parts = [slice(end - kind.shape[-1], end) for kind, end in zip(kinds, ends, strict=True)]
        return tuple((kind - middle[part]) / spread[part] for kind, part in zip(kinds, parts, strict=True))

    def restored(self, values: Floats, shift: Floats, scale: Floats) -> Floats:
        """Convert values (N, …) of the network to data units; `shift` and `scale` are those of each row, (N,)."""
        extent = (slice(None), *(None,) * (values.ndim - 1))
        found: Floats = values * scale[extent] + shift[extent]
        return np.exp(np.minimum(found, 700.0)) if self.scaling == "log" else found

    def to_bytes(self) -> bytes:
        """The content as JSON in UTF-8."""
        content = {**asdict(self), "frequency": self.frequency._asdict(), "shape": self.shape._asdict()}
        return (json_text(content, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> LearnedSeries:
        """Read a file that `to_bytes` wrote.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            raw: dict[str, Any] = parse_json(read_small(path, LARGEST))
            return cls(
                **{
                    **raw,
                    "roles": as_roles(raw["roles"]),
                    "frequency": Frequency(**raw["frequency"]),
                    "shape": WindowShape(**raw["shape"]),
                    "scales": {name: tuple(pair) for name, pair in raw["scales"].items()},
                    "covariates": tuple(tuple(pair) for pair in raw["covariates"]),
                }
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{path}: missing or damaged ({reason(error)})") from None

    def summary(self) -> list[str]:
        """Lines for the card."""
        grid = "rows without time stamps" if self.counted else f"one step a {self.frequency.name}"
        if self.frequency.irregular:
            length = self.usual_gap / (1 if self.frequency.unit == "step" else SECOND)
            unit = "" if self.frequency.unit == "step" else " seconds"
            grid = f"irregular, with a median of {length:g}{unit} between rows"
        sizes = f"{self.shape.window} steps are read, {self.shape.segment} at once, and {self.shape.horizon} predicted"
        return [f"series: {len(self.scales):,}, {grid}, season of {self.season}; {sizes}"]


def fitted_scale(values: Floats, scaling: Scaling) -> tuple[float, float]:
    """Fit the (shift, scale) of a series v; the scaled values are (v − shift) / scale.

    none: (0, 1). mean: (0, mean |v|). standard: (mean, standard deviation). median: (median, median |v − median|).
    log: (0, 1) for log v. A scale of 0 becomes 1.

    >>> fitted_scale(np.array([1.0, 3.0, np.nan]), "standard")
    (2.0, 1.0)
    """
    known = values[~np.isnan(values)]
    if scaling in ("none", "log") or not len(known):
        return 0.0, 1.0
    if scaling == "mean":
        shift, scale = 0.0, float(np.abs(known).mean())
    elif scaling == "standard":
        shift, scale = float(known.mean()), float(known.std())
    else:
        shift = float(np.median(known))
        scale = float(np.median(np.abs(known - shift)))
    return shift, scale if scale > 1e-12 * max(abs(shift), 1e-300) else 1.0


def usual_scale(scales: list[tuple[float, float]]) -> tuple[float, float]:
    """The median shift and the median scale; of no series (0, 1).

    >>> usual_scale([(0.0, 1.0), (1.0, 3.0), (2.0, 90.0)])
    (1.0, 3.0)
    """
    if not scales:
        return 0.0, 1.0
    shift, scale = np.median(scales, axis=0)
    return float(shift), float(scale)


def fitted_covariates(*columns: Floats) -> tuple[tuple[float, float], ...]:
    """The mean and the standard deviation of each covariate, of arrays (N, covariates); 1 if it is constant."""
    found = []
    for values in columns:
        for column in values.T:
            known = column[~np.isnan(column)]
            middle, spread = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
            found.append((middle, spread if spread > 1e-12 * max(abs(middle), 1e-300) else 1.0))
    return tuple(found)


def check_counts(panel: Panel) -> None:
    """Check that all values are 0, 1, 2, …

    Raises:
        DataError: the first value that is not.
    """
    bad = np.flatnonzero((panel.target < 0) | (panel.target % 1 > 0))
    if len(bad):
        series = int(np.searchsorted(panel.starts, bad[0], side="right")) - 1
        raise DataError(
            f"model.head=negative-binomial: expected counts 0, 1, 2, …; series {panel.ids[series]!r} has "
            f"{panel.target[bad[0]]:g} ({len(bad):,} such values); use quantiles or student-t"
        )


def check_positive(panel: Panel) -> None:
    """Check that all values are above 0.

    Raises:
        DataError: a value is 0 or below; the message names the first.
    """
    bad = np.flatnonzero(panel.target <= 0)
    if len(bad):
        series = int(np.searchsorted(panel.starts, bad[0], side="right")) - 1
        raise DataError(
            f"data.scaling=log: expected values above 0; series {panel.ids[series]!r} has {panel.target[bad[0]]:g} "
            f"({len(bad):,} such values); use standard or mean"
        )
