"""Memory for arrays of many steps, used again from call to call.

The system hands out large pieces of memory page by page, which costs as much as filling them. So large arrays are kept
when they are no longer in use, up to `KEPT` bytes, and given to the next call that asks for one of about their size.

So an array may be up to a quarter smaller than its memory; `torch.save` and `pickle` write all of that: save a clone.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache

import torch
from torch import Tensor

from everstep.scanning.fused.locks import new_lock

KEPT = 1 << 29
"""Bytes that are kept though nothing uses them."""
_SMALL = 1 << 17
"""Numbers below which the system is fast enough."""
_lock = new_lock()


class _Block:
    """Memory, with the last tensor on it: mostly the next one is to have its shape."""

    __slots__ = ("_alone", "_made", "_storage", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor, self._storage = tensor, tensor.untyped_storage()
        self._made = self._storage.data_ptr(), self._storage.nbytes()
        self._alone = self._uses()

    def _uses(self) -> tuple[int, int]:
        """By tensors, and by whoever holds the storage itself: it is the same object for all."""
        return torch._C._storage_Use_Count(self._storage._cdata), sys.getrefcount(self._storage)

    def ours(self) -> bool:
        """Whether the memory is the one made here: resized, it is another; shared, other processes read it."""
        storage = self._storage
        return (storage.data_ptr(), storage.nbytes()) == self._made and not storage.is_shared()

    def idle(self) -> bool:
        """Whether the memory is ours, and no tensor but the last one uses it."""
        return self._uses() == self._alone and self.ours()

    def over(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of its own: no view, so that it can be anything's output."""
        if self.tensor.shape != shape or self.tensor.is_inference():  # which could not be saved for backward
            strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
            self.tensor = self.tensor.new_empty(0).set_(self._storage, 0, shape, strides)
        return self.tensor.detach()


_pool: dict[tuple[torch.dtype, int], list[_Block]] = {}
"""Blocks by how many numbers there is room for: sizes, rounded up to five significant bits."""


def empty(like: Tensor, *shape: int) -> Tensor:
    """An array of `like`'s dtype and device; its numbers are anything."""
    size = 1
    for n in shape:
        size *= n
    if size < _SMALL or not like.is_cpu:
        return like.new_empty(shape)
    with _lock:
        for room in _rooms(size):
            for block in _pool.get((like.dtype, room), ()):
                if block.idle():
                    return block.over(shape)
        return _new(like, _rooms(size)[0]).over(shape)


def clear() -> None:
    """Keep nothing that is not in use."""
    with _lock:
        _pool.clear()


@lru_cache(1 << 10)
def _rooms(size: int) -> list[int]:
    """The least room for so many numbers, then those that are up to a quarter larger."""
    found, room = [], size
    while room <= 1.25 * size:
        grain = 1 << max(0, (room - 1).bit_length() - 5)
        found.append(-(-room // grain) * grain)
        room = found[-1] + 1
    return found


def _new(like: Tensor, room: int) -> _Block:
    """A block of so many numbers. What is no longer ours goes, and where that makes too many, the oldest idle ones."""
    for found in _pool.values():
        found[:] = [block for block in found if block.ours()]
    blocks = [(key, block) for key, found in _pool.items() for block in found if block.idle()]
    spare = sum(block.tensor.untyped_storage().nbytes() for _, block in blocks) - KEPT
    for key, block in blocks:
        if spare > 0:
            spare -= block.tensor.untyped_storage().nbytes()
            _pool[key].remove(block)
    new = _Block(like.new_empty(room))
    _pool.setdefault((like.dtype, room), []).append(new)
    return new
