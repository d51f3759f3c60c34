"""Models with an update rule of their own, in place of a gradient and an optimizer."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class MovesItself(Protocol):
    """A model whose weights `fit` leaves to itself, such as word vectors, which move at every pair of words.

    `fit` keeps counts, schedule, averages, validations and checkpoints as for any model. The objective is called for
    validations only; optimizer, rules and `clip_norm` have no effect.
    """

    def move(self, batch: Any, rate: float) -> Tensor:
        """Change the weights by one batch at the learning rate `rate`; the losses (B,) on the way, summed over time.

        What it draws at random depends on the batch alone, so that a resumed run does the same.
        """
