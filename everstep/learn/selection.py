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
        name: of the measure that decides.
    """

    loss: float
    value: float
    cost: float
    measures: dict[str, float] = field(default_factory=dict)
    name: str = LOSS

    @property
    def shown(self) -> str:
        """What decides, in words: a loss by its number alone."""
        return f"{self.value:.4f}" if self.name == LOSS else f"{self.name} {self.value:.4f}"


class Selection:
    """Reads validations by `FitSettings.select`; `scores` are the measures of which the highest is best."""

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
        """The validation that `validate` returned.

        Raises:
            ConfigError: `select` names a measure that is not among them.
            TypeError: it is neither a number nor measures, of which "loss" is one.
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
