"""Averages of the weights over steps: validated and saved, while the optimizer goes on with the raw weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from everstep.learn.optim import trainable
from everstep.learn.settings import FitSettings


def ema_decay(decay: float, updates: int) -> float:
    """min(d, (1 + n) / (10 + n)): the decay after n updates. It starts low, so that the first weights count little.

    Example:
        >>> ema_decay(0.99, 0)
        0.1
    """
    return min(decay, (1 + updates) / (10 + updates))


def nt_asgd_triggers(valid: float, earlier: list[float], patience: int) -> bool:
    """Whether validation `valid` is worse than the best of those more than n = `patience` validations ago.

    t > n and v > min(v₀ … v_{t−n−1}), with t the number of `earlier` ones, oldest first.

    Source: Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", 2018, algorithm 1, as in
    their code. (As printed, the algorithm takes the minimum over the *last* n validations.)

    Example:
        >>> nt_asgd_triggers(3.0, [2.0, 2.5], patience=1)
        True
    """
    return len(earlier) > patience and valid > min(earlier[:-patience])


class Averaging:
    """The average a of the trainable parameters w, after each step.

    "ema": a ← d·a + (1 − d)·w with d = `ema_decay(decay, n)`, from the first step on.
    "nt-asgd": a = mean of w over the steps since the trigger (`nt_asgd_triggers`), including that step.
    "none": never active.

    Attributes:
        updates: n, the number of weights averaged so far; 0 while inactive.
        earlier: validations seen before the trigger of "nt-asgd", in nats.
    """

    def __init__(self, model: nn.Module, settings: FitSettings):
        self._kind = settings.averaging
        self._decay = settings.ema_decay
        self._patience = settings.nt_asgd_patience
        self._parameters = trainable(model)
        self._averages: list[Tensor] = []
        self.updates = 0
        self.earlier: list[float] = []
        if self._kind == "ema":
            self._start()

    @property
    def active(self) -> bool:
        """Whether there is an average to use."""
        return bool(self._averages)

    def _start(self) -> None:
        self._averages = [parameter.detach().clone() for parameter in self._parameters.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights to the average; call after each optimizer step."""
        if not self.active:
            return
        if self._kind == "ema":
            weight = 1.0 - ema_decay(self._decay, self.updates)
        else:
            weight = 1.0 / (self.updates + 1)
        torch._foreach_lerp_(self._averages, list(self._parameters.values()), weight)
        self.updates += 1

    def observe(self, valid: float) -> bool:
        """Record one validation loss (nats); True if "nt-asgd" starts averaging now."""
        if self._kind != "nt-asgd" or self.active:
            return False
        starts = nt_asgd_triggers(valid, self.earlier, self._patience)
        self.earlier.append(valid)
        if starts:
            self._start()
            self.updates = 1
        return starts

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the average, if there is one; afterwards the raw weights, bit for bit."""
        own = [parameter.detach().clone() for parameter in self._parameters.values()] if self.active else []
        try:
            self._fill(self._averages)
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, tensors: list[Tensor]) -> None:
        if tensors:
            for parameter, tensor in zip(self._parameters.values(), tensors, strict=True):
                parameter.copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name; empty while inactive."""
        return dict(zip(self._parameters, self._averages, strict=True)) if self.active else {}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], updates: int, earlier: list[float]) -> None:
        """Restore a saved state; `tensors` holds the averages of all parameters, or none."""
        self.updates, self.earlier = updates, list(earlier)
        if tensors:
            self._averages = [tensors[name].to(p, copy=True) for name, p in self._parameters.items()]
