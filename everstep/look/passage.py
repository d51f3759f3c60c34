"""A passage: one input as a model reads it, step by step, with the data that pictures need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from everstep.cell import Layer
from everstep.errors import DataError


@dataclass(frozen=True)
class Passage:
    """One sequence as a model reads it. `look` draws what the given fields allow.

    Attributes:
        body: the layers that run over it.
        inputs: (time, features), the inputs of the body.
        labels: the text of each displayed piece, in order.
        places: for each piece, the step after which it has been read.
        unit: the name of a step: "character", "word".
        shown: the name of a piece; bytes are shown as characters.
        targets: (time,), the target of each step; None if the model does not predict step by step.
        loss: maps outputs of the body (batch, time, features) and targets (batch, time) to the loss of each step
            (batch, time), which depends on that step's output alone; None without `targets`, and where it depends on
            more.
        loss_unit: the unit of the loss: "nats".
        surprise: returns −log₂ p of each piece given those before it, in bits; None if the model predicts nothing.
        model_loss: maps a model of the same class, and the numbers of rows and steps in which to read the beginning of
            the passage, to its mean loss; None if there is none.
        alignment: (outputs, pieces), the attention of each output over the pieces; None without attention.
    """

    body: Layer
    inputs: Tensor
    labels: Sequence[str]
    places: Sequence[int]
    unit: str
    shown: str
    targets: Tensor | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    loss_unit: str = "nats"
    surprise: Callable[[], Sequence[float]] | None = None
    model_loss: Callable[[Any, int, int], Tensor] | None = None
    alignment: Tensor | None = None

    def foreseen(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of at most `tokens` tokens: (time, features), (time,).

        Raises:
            DataError: the passage has fewer than two tokens.
        """
        assert self.targets is not None
        time = min(len(self.targets), tokens)
        if time < 2:
            raise DataError(
                f"look: the text has {time} token; gradients need two or more to travel. Give a longer --text."
            )
        return self.inputs[:time], self.targets[:time]

    @property
    def pairs(self) -> list[tuple[str, float]]:
        """Each piece with its surprise in bits; empty if the model predicts nothing."""
        return [] if self.surprise is None else list(zip(self.labels, self.surprise(), strict=True))
