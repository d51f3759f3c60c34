"""Baselines without recurrence, trained and evaluated on the same data."""

from __future__ import annotations

from everstep.rivals.text_classes import Rival, WordTexts, text_rivals

__all__ = ["Rival", "WordTexts", "text_rivals"]
