"""Outputs where there is no step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def nothing(like: Tensor, shape: Sequence[int], tensors: Iterable[Tensor]) -> Tensor:
    """Zeros of this shape by which, and so by whose loss, all of the tensors have a gradient: of zeros.

    Without it, `backward` of a batch that happens to hold no step would fail where any other does not.
    """
    zeros = like.new_zeros(tuple(shape))
    empty = [t.reshape(-1)[:0].to(zeros) for t in (like, *tensors) if t.requires_grad]
    if not empty or not torch.is_grad_enabled():
        return zeros
    return torch.cat([zeros.flatten(), *empty]).view(zeros.shape)
