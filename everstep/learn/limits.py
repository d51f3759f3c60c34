"""The limits of a run: which one is reached, and whether one was lowered below the progress made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from everstep.errors import ConfigError, counted
from everstep.learn.learner import RunCounts
from everstep.learn.settings import FitSettings


def limit_reached(settings: FitSettings, counts: RunCounts, seconds: float) -> str:
    """The key of the first limit reached, or ""."""
    if settings.max_steps is not None and counts.step >= settings.max_steps:
        return "max_steps"
    if settings.max_epochs is not None and counts.epoch >= settings.max_epochs:
        return "max_epochs"
    if settings.max_minutes is not None and seconds >= 60 * settings.max_minutes:
        return "max_minutes"
    return ""


def check_lowered(settings: FitSettings, before: Mapping[str, Any], counts: RunCounts) -> None:
    """Refuse a limit lower than `before` and lower than the progress made: training would end without a step.

    Raises:
        ConfigError: there is such a limit; the message names it, the progress, and what to set.
    """
    begun, minutes = counts.epoch + (counts.index > 0), counts.seconds / 60
    done = {
        "max_steps": (counts.step, counted(counts.step, "step")),
        "max_epochs": (begun, "more than " * (counts.index > 0) + counted(counts.epoch, "epoch")),
        "max_minutes": (minutes, f"{minutes:.1f} minutes"),
    }
    for key, (spent, words) in done.items():
        limit, old = getattr(settings, key), before.get(key)
        if limit is not None and limit < min(spent, math.inf if old is None else old):
            raise ConfigError(
                f"{key}: expected more than the progress so far ({words}); got {limit:g}, by which training would end "
                f"at once. To end the run where it is, as it is: max_steps={counts.step}"
            )
