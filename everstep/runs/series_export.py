"""The export of forecasters."""

from __future__ import annotations

from typing import Any

from everstep.networks.forecaster import Forecaster
from everstep.networks.forecaster_forms import ForecasterStandIn, forecaster_forms
from everstep.networks.forms import Exported
from everstep.networks.learned_series import LearnedSeries
from everstep.networks.stand_ins import Runtime


class ExportsForecasts:
    """What a job of forecasts has of the capability `Exports`."""

    recipe: Any
    learned: LearnedSeries

    def exported(self, model: Any) -> Exported:
        """Windows to distributions of the horizon."""
        return forecaster_forms(model)

    def stand_in(self, runtime: Runtime) -> Forecaster:
        """The same in another runtime."""
        return ForecasterStandIn(self.recipe.model, self.learned.shape, runtime)
