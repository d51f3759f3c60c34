"""Memory for arrays of many steps, used again from call to call.

The system hands out large pieces of memory page by page, which costs as much as filling them. So large arrays are kept
when they are no longer in use, and given to the next call that asks for one of their size.
"""

from __future__ import annotations

import threading
from collections import deque

import torch
from torch import Tensor

_SMALL = 1 << 17
"""Numbers below which the system is fast enough."""
_KEPT = 64
_lock = threading.Lock()
_pool: deque[Tensor] = deque(maxlen=_KEPT)


def _free(block: Tensor) -> bool:
    # the pool's own tensor is the only user of its storage
    return bool(torch._C._storage_Use_Count(block.untyped_storage()._cdata) <= 2)


def empty(like: Tensor, *shape: int) -> Tensor:
    """An array of `like`'s dtype; its numbers are anything."""
    size = 1
    for n in shape:
        size *= n
    if size < _SMALL:
        return like.new_empty(shape)
    with _lock:
        for block in _pool:
            if block.dtype == like.dtype and size <= block.numel() <= 1.25 * size and _free(block):
                return _over(block, shape)
        block = like.new_empty(size)
        _pool.append(block)
        return _over(block, shape)


def _over(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of its own on a block's memory: no view, so that it can be anything's output."""
    return block.new_empty(0).set_(block.untyped_storage(), 0, shape, torch.empty(shape, device="meta").stride())


def zeros(like: Tensor, *shape: int) -> Tensor:
    """The same, all zeros."""
    return empty(like, *shape).zero_()
