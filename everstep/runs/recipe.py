"""Recipes as typed values: every key with type, range and default, validated before any work."""

from __future__ import annotations

from collections.abc import Iterator

from everstep.learn.settings import FitSettings
from everstep.sections import Section, Seed

FORMAT = 2
"""The format of run folders; raised when an older everstep cannot read a newer run."""


class Recipe(Section):
    """The keys common to all recipes: job, seed, training. A job adds data, model, objective and decode."""

    task: str
    """the job: a name or FILE.py:CLASS"""
    seed: Seed = 1
    """seed of all random generators"""
    train: FitSettings

    def validated(self) -> bool:
        """Whether the data has a validation split; by default as its section says."""
        return bool(getattr(getattr(self, "data", None), "validated", True))

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Settings that need a validation, if there is none."""
        if not self.validated():
            for key, instead in self.train.needs_validation.items():
                name, _, value = key.partition(": ")
                yield (
                    f"train.{name}",
                    f"{value or name} needs validation; set data.valid, or data.valid_fraction above 0, "
                    f"or train.{instead}",
                )
