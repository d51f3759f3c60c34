"""The form of a forecaster, and the forecaster that another runtime computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.data.windows import WindowBatch
from everstep.heads.numbers import Gaussian, PointHead, Quantiles
from everstep.measures.forecast_errors import LEVELS
from everstep.networks.forecaster import Forecaster
from everstep.networks.forecaster_section import ForecasterSection, WindowShape
from everstep.networks.forms import Exported, Form, Input, Named
from everstep.networks.stand_ins import Nowhere, Runtime
from everstep.networks.window_values import normalised, seasonal_weight
from everstep.state import State

_IN_ONE_FORMULA = (Quantiles, Gaussian, PointHead)
"""Heads whose quantiles are no search for numbers."""


def forecaster_forms(model: Forecaster) -> Exported:
    """The form of a forecaster: one window of each series to the distribution of each step of the horizon.

    Inputs: `values` (batch, window), scaled, NaN where one is missing; `past` (batch, window, P), `future` (batch,
    window + horizon, F) and `series` (batch,), the number of the series, as far as the model reads them. With H the
    horizon, the outputs are `mean` (batch, H); `quantiles` (batch, H, 11), for heads with a formula for them; `law`
    (batch, H, K + 2), the K parameters of the head for values less a shift over a scale, then shift and scale.
    """
    shape = model.shape
    bands = isinstance(model.head, _IN_ONE_FORMULA)
    if model.residuals is not None:
        bands = not bool(model.residuals.isnan().any())

    def sequence(given: Named, state: State) -> tuple[Named, State]:
        values = given["values"]
        rows = values.shape[0]
        none = values.new_zeros(rows, shape.window + shape.horizon, 0)
        series = given.get("series", values.new_zeros(rows).to(torch.int64))
        past, future = given.get("past", none[:, : shape.window]), given.get("future", none)
        batch = WindowBatch(values, past, future, values, series, 0)
        ys, known = model(batch)
        shift, scale = (part.expand(rows, shape.horizon)[..., None] for part in (known.ahead, known.spread))
        if model.head.in_data_units:
            ys = model.head.rescaled(ys, known.ahead, known.spread)
            shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
        mean = model.head.mean(ys) * scale[..., 0] + shift[..., 0]
        found = {"mean": mean, "law": torch.cat([ys, shift, scale], -1)}
        if bands and model.residuals is not None:
            found["quantiles"] = mean[..., None] + model.residuals * scale
        elif bands:
            found["quantiles"] = model.head.quantiles(ys, LEVELS) * scale + shift
        return found, state

    inputs = {"values": Input(("batch", shape.window), gaps=True)}
    if shape.past:
        inputs["past"] = Input(("batch", shape.window, shape.past))
    if shape.future:
        inputs["future"] = Input(("batch", shape.window + shape.horizon, shape.future))
    if any(part is not None for part in (model.embedding, model.smoothing, model.lags)):
        inputs["series"] = Input(("batch",), shape.series + 1)
    return Exported("it reads whole windows, each scaled by its own values", Form(model, sequence, inputs))


class ForecasterStandIn(Forecaster):
    """A `Forecaster` that another runtime computes.

    Args:
        section: a recipe's `model`.
        shape: the sizes.
        runtime: the runtime.
    """

    def __init__(self, section: ForecasterSection, shape: WindowShape, runtime: Runtime):
        nn.Module.__init__(self)
        self.section, self.shape, self._runtime = section, shape, runtime
        self.head = section.make_head()
        self.write = Nowhere()  # type: ignore[assignment]
        self.smoothing = section.smoothing == "learned" or None  # type: ignore[assignment]
        form = runtime.described("sequence") or {"inputs": (), "outputs": ()}
        self._inputs = tuple(form["inputs"])
        known = 0.0 if "quantiles" in form["outputs"] else torch.nan  # only whether they are known is asked
        errors = torch.full((shape.horizon, len(LEVELS)), known)
        self.register_buffer("residuals", errors if section.measured else None)

    def _asked(self, batch: WindowBatch) -> Named:
        return self._runtime.sequence({name: getattr(batch, name) for name in self._inputs}, ())[0]

    def losses(self, batch: WindowBatch) -> Tensor:
        """The head's loss of each window, (B,)."""
        law = self._asked(batch)["law"]
        found = self.head.loss(law[..., :-2], (batch.target - law[..., -2]) / law[..., -1])
        if self.section.weight == "none" or self.head.in_data_units:
            return found
        known = normalised(batch.values, "last" if self.smoothing else self.section.level, self.section.spread)
        return found * seasonal_weight(known, self.shape.season)

    @torch.no_grad()
    def laws(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None, Tensor]:
        """The mean, the quantiles and the distribution of each step, see `Forecaster.laws`."""
        found = self._asked(batch)
        if self.residuals is None:
            return found["mean"], self.quantiles_of(found["law"], LEVELS), found["law"]
        bands = found.get("quantiles")
        empty = torch.full((*found["mean"].shape, len(LEVELS)), torch.nan)
        return found["mean"], bands, empty if bands is None else bands

    def calibrate(self, windows: object) -> None:
        """Nothing: the quantiles are in the export."""
