"""A pool of memory for arrays of many steps, reused from call to call.

The system provides large memory page by page, which costs as much as filling it, and new pages are in no cache. So
unused large arrays are kept, up to `KEPT` bytes, and reused by a later call that needs about as much memory, or less
for arrays that no caller sees.

Known limit: an array that a caller gets may be up to a quarter smaller than its memory, all of which `torch.save` and
`pickle` write. Save a clone.
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
"""Most unused bytes that are kept."""
_SMALL = 1 << 17
"""Size in numbers below which the system's allocator is fast enough."""
_OWN = 1 << 24
"""Most bytes of `scratch` per thread."""
_lock = new_lock()
_clock = itertools.count()


class _Block:
    """A block of memory, with its last tensor, whose shape the next one often has.

    Attributes:
        capacity: size in numbers.
        used: time of the last use.
    """

    __slots__ = ("_alone", "_made", "_storage", "_tensor", "_whole", "capacity", "used")

    def __init__(self, like: Tensor, capacity: int):
        with torch.inference_mode(False):  # tensors of inference mode could not be saved for backward
            self._whole = like.new_empty(capacity)
        self.capacity, self.used, self._tensor = capacity, 0, self._whole.detach()
        self._storage = self._whole.untyped_storage()
        self._made = self._storage.data_ptr(), self._storage.nbytes()
        self._alone = self._uses()

    def _uses(self) -> tuple[int, int]:
        """The numbers of references by tensors, and to the storage object itself, which all tensors share."""
        return torch._C._storage_Use_Count(self._storage._cdata), sys.getrefcount(self._storage)

    @property
    def bytes(self) -> int:
        return self._made[1]

    def ours(self) -> bool:
        """Whether the memory is still the pool's: not resized, and not shared with other processes."""
        storage = self._storage
        return (storage.data_ptr(), storage.nbytes()) == self._made and not storage.is_shared()

    def idle(self) -> bool:
        """Whether the memory is the pool's and unused."""
        return self._uses() == self._alone and self.ours()

    def over(self, shape: tuple[int, ...]) -> Tensor:
        """A new tensor on the memory; not a view, so that any function may return it."""
        if self._tensor.shape != shape or self._tensor.is_inference():
            strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
            self._tensor = self._whole.new_empty(0).set_(self._storage, 0, shape, strides)
        return self._tensor.detach()

    def first(self, size: int) -> Tensor:
        """The first `size` numbers."""
        return self._whole.as_strided((size,), (1,))


_capacity = attrgetter("capacity")
_pool: dict[torch.dtype, list[_Block]] = {}
"""Blocks by dtype, smallest first."""


class _Own(threading.local):
    """Thread-local data.

    Attributes:
        scratch, size: memory for `scratch`, and its size in bytes.
        apart: whether arrays get new memory of their exact size.
    """

    scratch: Tensor
    size = 0
    apart = False


_own = _Own()


def empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised array with the dtype and device of `like`."""
    size = 1
    for n in shape:
        size *= n
    if size < _SMALL or _own.apart or not like.is_cpu:
        return like.new_empty(shape)
    with _lock:
        return _block(like, size, 1.25 * size).over(shape)


def inner(like: Tensor, size: int) -> Tensor:
    """An uninitialised CPU array of `size` numbers with the dtype of `like`, which no caller sees."""
    if size < _SMALL or _own.apart:
        return like.new_empty(size)
    with _lock:
        return _block(like, size, math.inf).first(size)


def scratch(like: Tensor, size: int) -> Tensor:
    """CPU memory for `size` numbers with the dtype of `like`, valid until the next call in the same thread."""
    wanted = size * like.element_size()
    if wanted > _own.size:
        if wanted > _OWN:
            return inner(like, size)
        _own.size = 0  # in case the allocation fails
        _own.scratch = like.new_empty(wanted, dtype=torch.uint8)
        _own.size = wanted
    return _own.scratch


@contextmanager
def apart() -> Iterator[None]:
    """Within the block, arrays of this thread get new memory of their exact size."""
    before, _own.apart = _own.apart, True
    try:
        yield
    finally:
        _own.apart = before


def clear() -> None:
    """Free all unused memory, and this thread's scratch memory."""
    with _lock:
        _pool.clear()
    _own.size, _own.scratch = 0, torch.empty(0)


def _block(like: Tensor, size: int, most: float) -> _Block:
    """An idle block with a capacity from `size` to `most` numbers; else a new one."""
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
    """A new block; drops blocks that are no longer the pool's, and the least recently used if too much is idle."""
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
