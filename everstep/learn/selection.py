"""Which weights are best: what a validation says, and the measure of it that decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from everstep.errors import ConfigError
from everstep.learn.settings import FitSettings

Validate = Callable[[nn.Module], float | Mapping[str, float]]
"""Of the model in eval mode: a number, the lower the better, or measures by name, of which "loss" is one."""
LOSS = "loss"


@dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes:
        loss: the mean loss per target.
        measures: all others, by name.
        value: of the measure that decides.
        cost: what is compared, of which the lowest is best: `value`, or its negative where the highest is best.
    """

    loss: float
    value: float
    cost: float
    measures: dict[str, float] = field(default_factory=dict)


class Selection:
    """Reads validations by `FitSettings.select`; `scores` are the measures of which the highest is best."""

    def __init__(self, settings: FitSettings, scores: Collection[str] = ()):
        self.name = (settings.select or LOSS).removeprefix("valid.")
        best = settings.select_best
        self.highest = best == "highest" or (best == "auto" and self.name in scores)

    def read(self, found: Any) -> Validation:
        """The validation that `validate` returned.

        Raises:
            ConfigError: `select` names a measure that is not among them, or "loss" is not.
        """
        numbers = {LOSS: float(found)} if not isinstance(found, Mapping) else {k: float(v) for k, v in found.items()}
        for name in (LOSS, self.name):
            if name not in numbers:
                raise ConfigError(f"train.select: expected one of {', '.join(numbers)}; got {name}")
        value = numbers[self.name]
        others = {name: number for name, number in numbers.items() if name != LOSS}
        return Validation(numbers[LOSS], value, -value if self.highest else value, others)

    def better(self, found: Validation, cost: float | None, loss: float | None) -> bool:
        """Whether a validation is better than the best so far; of equals, the one with the lower loss."""
        if cost is None or found.cost < cost:
            return True
        return found.cost == cost and loss is not None and found.loss < loss

    def value(self, cost: float) -> float:
        """The measure whose cost that is."""
        return -cost if self.highest else cost


def finite(validation: Validation) -> bool:
    """Whether the loss and the measure that decides are numbers."""
    return math.isfinite(validation.loss) and math.isfinite(validation.cost)
