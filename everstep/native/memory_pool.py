"""Memory for arrays of many steps, used again from call to call.

The system hands out large pieces of memory page by page, which costs as much as filling them, and they are in no cache.
So large arrays are kept when they are no longer in use, up to `KEPT` bytes, and given to a later call: to one that asks
for about as much, or, for what no caller sees, for less.

So an array that a caller gets may be up to a quarter smaller than its memory; `torch.save` and `pickle` write all of
that: save a clone.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter, itemgetter

import torch
from torch import Tensor

from everstep.native.locks import new_lock

KEPT = 1 << 29
"""Bytes that are kept though nothing uses them."""
_SMALL = 1 << 17
"""Numbers below which the system is fast enough."""
_OWN = 1 << 24
"""Bytes up to which each thread has `scratch` of its own."""
_lock = new_lock()
_clock = itertools.count()


class _Block:
    """Memory, with the last tensor on it: mostly the next one is to have its shape.

    Attributes:
        capacity: numbers in it.
        used: when it was last given away.
    """

    __slots__ = ("_alone", "_made", "_storage", "_tensor", "_whole", "capacity", "used")

    def __init__(self, like: Tensor, capacity: int):
        with torch.inference_mode(False):  # where tensors could not be saved for backward
            self._whole = like.new_empty(capacity)
        self.capacity, self.used, self._tensor = capacity, 0, self._whole.detach()
        self._storage = self._whole.untyped_storage()
        self._made = self._storage.data_ptr(), self._storage.nbytes()
        self._alone = self._uses()

    def _uses(self) -> tuple[int, int]:
        """By tensors, and by whoever holds the storage itself: it is the same object for all."""
        return torch._C._storage_Use_Count(self._storage._cdata), sys.getrefcount(self._storage)

    @property
    def bytes(self) -> int:
        return self._made[1]

    def ours(self) -> bool:
        """Whether the memory is the one made here: resized, it is another; shared, other processes read it."""
        storage = self._storage
        return (storage.data_ptr(), storage.nbytes()) == self._made and not storage.is_shared()

    def idle(self) -> bool:
        """Whether the memory is ours, and nobody uses it."""
        return self._uses() == self._alone and self.ours()

    def over(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of its own: no view, so that it can be anything's output."""
        if self._tensor.shape != shape or self._tensor.is_inference():
            strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
            self._tensor = self._whole.new_empty(0).set_(self._storage, 0, shape, strides)
        return self._tensor.detach()

    def first(self, size: int) -> Tensor:
        """The first numbers of it."""
        return self._whole.as_strided((size,), (1,))


_capacity = attrgetter("capacity")
_pool: dict[torch.dtype, list[_Block]] = {}
"""Blocks, the smallest first."""


class _Own(threading.local):
    """What each thread has for itself.

    Attributes:
        scratch, size: memory for `scratch`, and its bytes.
        apart: whether arrays lie in memory that is made for them.
    """

    scratch: Tensor
    size = 0
    apart = False


_own = _Own()


def empty(like: Tensor, *shape: int) -> Tensor:
    """An array of `like`'s dtype and device; its numbers are anything."""
    size = 1
    for n in shape:
        size *= n
    if size < _SMALL or _own.apart or not like.is_cpu:
        return like.new_empty(shape)
    with _lock:
        return _block(like, size, 1.25 * size).over(shape)


def inner(like: Tensor, size: int) -> Tensor:
    """So many numbers that no caller sees, of `like`'s dtype, on the CPU."""
    if size < _SMALL or _own.apart:
        return like.new_empty(size)
    with _lock:
        return _block(like, size, math.inf).first(size)


def scratch(like: Tensor, size: int) -> Tensor:
    """Memory for as many numbers of `like`'s dtype, on the CPU, until the calling thread asks for some again."""
    wanted = size * like.element_size()
    if wanted > _own.size:
        if wanted > _OWN:
            return inner(like, size)
        _own.size = 0  # should there be too little memory
        _own.scratch = like.new_empty(wanted, dtype=torch.uint8)
        _own.size = wanted
    return _own.scratch


@contextmanager
def apart() -> Iterator[None]:
    """Inside, this thread's arrays lie in memory that is made for them, so that its size is theirs."""
    before, _own.apart = _own.apart, True
    try:
        yield
    finally:
        _own.apart = before


def clear() -> None:
    """Keep nothing that is not in use, nor this thread's scratch memory."""
    with _lock:
        _pool.clear()
    _own.size, _own.scratch = 0, torch.empty(0)


def _block(like: Tensor, size: int, most: float) -> _Block:
    """An idle block that has room for so many numbers, and at `most` for so many; else a new one."""
    blocks = _pool.setdefault(like.dtype, [])
    found = None
    for block in blocks[bisect_left(blocks, size, key=_capacity) :]:
        if block.capacity > most:
            break
        if block.idle():
            found = block
            break
    if found is None:
        found = _new(like, size)
    found.used = next(_clock)
    return found


def _new(like: Tensor, size: int) -> _Block:
    """A block for so many. What is no longer ours goes, and where too much is idle, what was not used for longest."""
    for found in _pool.values():
        found[:] = [block for block in found if block.ours()]
    idle = [(block.used, dtype, block) for dtype, found in _pool.items() for block in found if block.idle()]
    spare = sum(block.bytes for *_, block in idle) - KEPT
    for _, dtype, block in sorted(idle, key=itemgetter(0)):
        if spare > 0:
            spare -= block.bytes
            _pool[dtype].remove(block)
    grain = 1 << max(0, (size - 1).bit_length() - 5)
    new = _Block(like, -(-size // grain) * grain)
    insort(_pool.setdefault(like.dtype, []), new, key=_capacity)
    return new
