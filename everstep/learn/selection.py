"""The selection of the best weights by a measure of the validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from everstep.errors import ConfigError
from everstep.learn.settings import FitSettings

Validate = Callable[[nn.Module], float | Mapping[str, float]]
"""Validates a model in eval mode. Returns its loss, lower is better, or a dict of measures that includes "loss"."""
LOSS = "loss"


@dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes:
        loss: the mean loss per target.
        measures: all other measures by name.
        value: the value of the deciding measure.
        cost: `value`, or its negative if the highest is best; the lowest cost is best.
        name: the name of the deciding measure.
    """

    loss: float
    value: float
    cost: float
    measures: dict[str, float] = field(default_factory=dict)
    name: str = LOSS

    @property
    def shown(self) -> str:
        """The deciding measure as text; for the loss, the number alone."""
        return f"{self.value:.4f}" if self.name == LOSS else f"{self.name} {self.value:.4f}"


class Selection:
    """Compares validations by `FitSettings.select`; `scores` are the measures for which higher is better."""

    def __init__(self, settings: FitSettings, scores: Collection[str] = ()):
        self.name = (settings.select or LOSS).removeprefix("valid.")
        best = settings.select_best
        if best == "auto" and self.name != LOSS and self.name not in scores:
            raise ConfigError(
                f"select_best: expected lowest or highest beside select={self.name}, since nothing says which "
                f"{self.name} is best; got auto"
            )
        self.highest = best == "highest" or (best == "auto" and self.name in scores)

    def read(self, found: Any) -> Validation:
        """The return value of `validate`, as a `Validation`.

        Raises:
            ConfigError: `select` names a measure that was not returned.
            TypeError: the value is neither a number nor a dict of measures that includes "loss".
        """
        try:
            numbers = (
                {LOSS: float(found)} if not isinstance(found, Mapping) else {k: float(v) for k, v in found.items()}
            )
            loss = numbers[LOSS]
        except (TypeError, ValueError, KeyError, RuntimeError):
            got = f"measures {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
            raise TypeError(
                f'validate: expected a number, or numbers by name of which "loss" is one; got {got}'
            ) from None
        if self.name not in numbers:
            raise ConfigError(f"select: expected a measure of the validation ({', '.join(numbers)}); got {self.name}")
        value = numbers[self.name]
        others = {name: number for name, number in numbers.items() if name != LOSS}
        return Validation(loss, value, -value if self.highest else value, others, self.name)

    def better(self, found: Validation, cost: float | None, loss: float | None) -> bool:
        """Whether a validation beats the best `cost` so far; at equal cost, the lower loss wins."""
        if cost is None or found.cost < cost:
            return True
        return found.cost == cost and loss is not None and found.loss < loss

    def value(self, cost: float) -> float:
        """The deciding measure's value at this cost."""
        return -cost if self.highest else cost


def finite(validation: Validation) -> bool:
    """Whether the loss and the deciding measure are finite."""
    return math.isfinite(validation.loss) and math.isfinite(validation.cost)
