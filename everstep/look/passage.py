"""A passage: what a model reads of one input, step by step, with what pictures need to know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from everstep.cell import Layer
from everstep.errors import DataError


@dataclass(frozen=True)
class Passage:
    """One sequence as a model reads it. `look` draws what the fields that are given allow.

    Attributes:
        body: the layers that run over it.
        inputs: (time, features), what the body reads at each step.
        labels: the text of each piece shown, in order.
        places: the step after which each piece has been read; as many as labels.
        unit: what one step is: "character", "word".
        shown: what one piece is; bytes are shown as characters.
        targets: (time,), what each step is to foresee; None: nothing is foreseen step by step.
        loss: outputs of the body (batch, time, features) and targets (batch, time) to the loss of each step
            (batch, time), which depends on that step's output alone; None with `targets`.
        loss_unit: of the loss: "nats".
        surprise: gives −log₂ p of each piece given those before it, in bits; None: the model foresees nothing.
        model_loss: from a model like this one, and in how many rows of how many steps the passage's head is read, to
            its mean loss there; None: no such loss.
        alignment: (outputs, pieces), which piece each output attends to; None: no attention.
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
        """What a model reads of at most `tokens` tokens, and what it is to foresee: (time, features), (time,).

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
        """Each piece with its surprise in bits; empty where the model foresees nothing."""
        return [] if self.surprise is None else list(zip(self.labels, self.surprise(), strict=True))
