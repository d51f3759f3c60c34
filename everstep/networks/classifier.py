"""What classifiers of whole sequences share: answers, a head, a temperature."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from everstep.networks.answers import Answers


class Classifier(nn.Module):
    """A network → head → logits → / T → log p of each answer. A subclass makes the head and gives the logits.

    Args:
        answers: the answers of the head.
        calibrated: whether there is a temperature T, stored with the weights.

    Attributes:
        head: the head of the answers.
        temperature: T, a scalar buffer, initially 1; None if not calibrated.
    """

    head: nn.Module
    temperature: Tensor | None

    def __init__(self, answers: Answers, calibrated: bool = False):
        super().__init__()
        self.answers: Answers = answers
        self.register_buffer("temperature", torch.ones(()) if calibrated else None)

    @abstractmethod
    def logits(self, inputs: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """The logits (batch, …) of sequences (batch, time, …), before the temperature.

        `own` (batch,) are the classes of training sequences, for networks that leave out what they know of them.
        """

    @abstractmethod
    def pieces(self, inputs: Tensor, lengths: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each piece of `size` steps: what the cells read of it (batch, size, features), and its steps (batch,)."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """log p of each answer (batch, answers), in nats, of sequences (batch, time, …)."""
        return self.log_probs(self.logits(inputs, lengths))

    def log_probs(self, logits: Tensor) -> Tensor:
        """log p of each answer (batch, answers), from logits (batch, …)."""
        return self.answers.log_probs(self.head, logits if self.temperature is None else logits / self.temperature)
