"""Modules that declare their parameters by name and shape."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import nn


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
