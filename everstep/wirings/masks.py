"""Random masks, drawn faster on a CPU than by PyTorch's `dropout` and `bernoulli_`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def bernoulli(like: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """Numbers that are 1 with probability p, otherwise 0, of `like`'s dtype and device, from torch's generator.

    On a CPU each uses 32 random bits, so that p is exact to 2⁻³³.

    >>> float(bernoulli(torch.zeros(1), (400, 400), 0.25).mean().round(decimals=2))
    0.25
    """
    return _drawn(like, shape, p).to(like.dtype)


def dropout_mask(like: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """Numbers that are 0 with probability p, otherwise 1 / (1 − p), so that their mean is 1."""
    return _drawn(like, shape, 1 - p).to(like.dtype).mul_(1 / (1 - p))


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """x times a `dropout_mask` of its shape; x itself outside of training."""
    return x * dropout_mask(x, x.shape, p) if training and p > 0 else x


def _drawn(like: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """True with probability p."""
    if like.device.type != "cpu" or torch._C._are_functorch_transforms_active():
        return torch.rand(tuple(shape), device=like.device) < p  # vmap has no rule for bits, where it is named
    size = math.prod(shape)
    bits = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-size // 2),))
    # the clamp excludes the largest of 2³² numbers, which matters only for p = 1
    return bits.view(torch.int32)[:size].view(tuple(shape)) < min(round(p * (1 << 32)) - (1 << 31), (1 << 31) - 1)
