"""The output for a batch without any step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def nothing(like: Tensor, shape: Sequence[int], tensors: Iterable[Tensor]) -> Tensor:
    """Zeros of `shape` that give zero gradients to all `tensors`.

    Without this connection, `backward` would fail for a batch without steps.
    """
    zeros = like.new_zeros(tuple(shape))
    empty = [t.reshape(-1)[:0].to(zeros) for t in (like, *tensors) if t.requires_grad]
    if not empty or not torch.is_grad_enabled():
        return zeros
    return torch.cat([zeros.flatten(), *empty]).view(zeros.shape)
