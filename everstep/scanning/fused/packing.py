"""Steps of ragged rows, one after the other without padding, and back; in memory that is used again (`pool.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everstep.scanning.fused.pool import empty, zeros


def packed(values: Tensor, places: Tensor) -> Tensor:
    """Rows `places` of values (places that there are, …): `index_select`."""
    found: Tensor = _Packed.apply(values, places)
    return found


def padded(values: Tensor, places: Tensor, size: int) -> Tensor:
    """(size, …) with values (len(places), …) at `places`, and zeros elsewhere."""
    found: Tensor = _Padded.apply(values, places, size)
    return found


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.size = places, len(values)
        into = empty(values, len(places), *values.shape[1:])
        return torch.index_select(values, 0, places, out=into)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return padded(grad, ctx.places, ctx.size), None


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.places = places
        return zeros(values, size, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return packed(grad, ctx.places), None, None
