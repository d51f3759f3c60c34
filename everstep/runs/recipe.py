"""Recipes as typed values: every key, its type, its range and its default, checked before any work."""

from __future__ import annotations

from collections.abc import Iterator

from everstep.learn.settings import FitSettings
from everstep.sections import Section, Seed

FORMAT = 2
"""Of run folders; raised when an older everstep could not read a newer run."""


class Recipe(Section):
    """What every job's recipe has: the job, the seed, how it learns. A job adds data, model, objective and decode."""

    task: str
    """the job: a name, or FILE.py:CLASS"""
    seed: Seed = 1
    """of every random generator"""
    train: FitSettings

    def validated(self) -> bool:
        """Whether the data has a part that is validated on; by default what its section says of itself."""
        return bool(getattr(getattr(self, "data", None), "validated", True))

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Settings that look at a validation where there is none."""
        if not self.validated():
            for key, instead in self.train.needs_validation.items():
                name, _, value = key.partition(": ")
                yield (
                    f"train.{name}",
                    f"{value or name} needs validation; set data.valid, or data.valid_fraction above 0, "
                    f"or train.{instead}",
                )
