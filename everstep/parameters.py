"""Modules that declare their parameters by name and shape."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Declaring(nn.Module):
    """A module that registers parameters with `declare` and initialises them in `reset_parameters`."""

    def declare(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Register and initialise a parameter of each shape; with `bias=False`, those named `bias…` are None."""
        for name, shape in shapes.items():
            absent = name.startswith("bias") and not bias
            value = None if absent else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.reset_parameters()

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise every parameter."""


def uniform_by_width(parameters: Iterable[Tensor], width: int) -> None:
    """Initialise parameters uniformly in ±1/√width, as PyTorch does those of its recurrent layers."""
    for parameter in parameters:
        nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))


def parameter_count(model: nn.Module) -> int:
    """Number of learned values: of its parameters, or what its attribute `parameter_count` says.

    >>> parameter_count(nn.Linear(2, 3))
    9
    """
    said = getattr(model, "parameter_count", None)
    return said if isinstance(said, int) else sum(parameter.numel() for parameter in model.parameters())


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
