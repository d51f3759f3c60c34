"""Memory that the engine uses again: never what someone still reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from everstep.scanning.fused import pool

SIZE = 1 << 18
LIKE = torch.empty(1)


@pytest.fixture(autouse=True)
def _own_pool() -> Iterator[None]:
    pool.clear()
    yield
    pool.clear()


def received(sent: Tensor) -> Tensor:
    """The tensor as another process gets it from a queue."""
    handle = sent.untyped_storage()._share_fd_cpu_()
    return torch.empty(0).set_(torch.UntypedStorage._new_shared_fd_cpu(*handle), 0, sent.shape, sent.stride())


def test_memory_that_another_process_holds_is_not_used_again() -> None:
    sent = pool.empty(LIKE, SIZE).fill_(1)
    there = received(sent)
    del sent
    pool.empty(LIKE, SIZE).fill_(2)
    assert bool((there == 1).all())
    assert [block.ours() for found in pool._pool.values() for block in found] == [True]


@pytest.mark.parametrize("size", [0, 2 * SIZE])
def test_memory_of_another_size_is_not_used_again(size: int) -> None:
    array = pool.empty(LIKE, SIZE)
    array.untyped_storage().resize_(4 * size)
    del array
    fresh = pool.empty(LIKE, SIZE)
    assert SIZE <= fresh.untyped_storage().nbytes() // 4 < 1.1 * SIZE
    assert len(pool._pool) == len([block for found in pool._pool.values() for block in found]) == 1


def test_memory_whose_storage_a_caller_holds_is_not_used_again() -> None:
    storage = pool.empty(LIKE, SIZE).fill_(1).untyped_storage()
    pool.empty(LIKE, SIZE).fill_(2)
    assert bool((torch.empty(0).set_(storage) == 1).all())
    address = storage.data_ptr()
    del storage
    assert pool.empty(LIKE, SIZE).data_ptr() == address
