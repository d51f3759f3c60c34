"""Modules that declare their parameters by name and shape."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import nn


class Declaring(nn.Module):
    """A module whose parameters are of any shape; `declare` makes them, `reset_parameters` starts them."""

    def declare(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Register a parameter of each shape and start it; with `bias=False` those called `bias…` are None."""
        for name, shape in shapes.items():
            absent = name.startswith("bias") and not bias
            value = None if absent else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.reset_parameters()

    @abstractmethod
    def reset_parameters(self) -> None:
        """Give every parameter its first value."""
