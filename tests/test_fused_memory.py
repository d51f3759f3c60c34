"""Memory that the engine uses again: never what someone still reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.native import memory_pool, toolchain
from everstep.wirings.checkpointed import bytes_of_step

SIZE = 1 << 18
LIKE = torch.empty(1)


@pytest.fixture(autouse=True)
def _own_pool() -> Iterator[None]:
    memory_pool.clear()
    yield
    memory_pool.clear()


def received(sent: Tensor) -> Tensor:
    """The tensor as another process gets it from a queue."""
    handle = sent.untyped_storage()._share_fd_cpu_()
    return torch.empty(0).set_(torch.UntypedStorage._new_shared_fd_cpu(*handle), 0, sent.shape, sent.stride())


def test_memory_that_another_process_holds_is_not_used_again() -> None:
    sent = memory_pool.empty(LIKE, SIZE).fill_(1)
    there = received(sent)
    del sent
    memory_pool.empty(LIKE, SIZE).fill_(2)
    assert bool((there == 1).all())
    assert [block.ours() for found in memory_pool._pool.values() for block in found] == [True]


@pytest.mark.parametrize("size", [0, 2 * SIZE])
def test_memory_of_another_size_is_not_used_again(size: int) -> None:
    array = memory_pool.empty(LIKE, SIZE)
    array.untyped_storage().resize_(4 * size)
    del array
    fresh = memory_pool.empty(LIKE, SIZE)
    assert SIZE <= fresh.untyped_storage().nbytes() // 4 < 1.1 * SIZE
    assert len(memory_pool._pool) == len([block for found in memory_pool._pool.values() for block in found]) == 1


def test_memory_whose_storage_a_caller_holds_is_not_used_again() -> None:
    storage = memory_pool.empty(LIKE, SIZE).fill_(1).untyped_storage()
    memory_pool.empty(LIKE, SIZE).fill_(2)
    assert bool((torch.empty(0).set_(storage) == 1).all())
    address = storage.data_ptr()
    del storage
    assert memory_pool.empty(LIKE, SIZE).data_ptr() == address


def test_what_no_caller_sees_takes_less_than_there_is() -> None:
    large = memory_pool.empty(LIKE, 4 * SIZE)
    address = large.data_ptr()
    assert memory_pool.inner(LIKE, SIZE).data_ptr() != address
    del large
    assert memory_pool.empty(LIKE, SIZE).data_ptr() != address
    small = memory_pool.empty(LIKE, SIZE)
    found = memory_pool.inner(LIKE, SIZE)
    assert (found.data_ptr(), found.shape) == (address, (SIZE,))
    assert not {small.data_ptr(), address} & {
        memory_pool.inner(LIKE, SIZE).data_ptr(),
        memory_pool.empty(LIKE, 4 * SIZE).data_ptr(),
    }


def test_what_was_taken_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        address = memory_pool.inner(LIKE, SIZE).data_ptr()
    found = memory_pool.inner(LIKE, SIZE)
    assert found.data_ptr() == address
    weight = torch.ones(SIZE, requires_grad=True)
    (found.fill_(2) * weight).sum().backward()
    assert bool((weight.grad == 2).all())


def test_scratch_memory_is_the_threads_own() -> None:
    address = memory_pool.scratch(LIKE, 1000).data_ptr()
    assert [memory_pool.scratch(LIKE, 1000).data_ptr(), memory_pool.scratch(LIKE.double(), 500).data_ptr()] == [
        address
    ] * 2
    there: list[Tensor] = []
    thread = threading.Thread(target=lambda: there.append(memory_pool.scratch(LIKE, 1000)))
    thread.start()
    thread.join()
    assert there[0].data_ptr() != address
    assert memory_pool.scratch(LIKE, SIZE).nbytes >= 4 * SIZE
    large = memory_pool.scratch(LIKE, memory_pool._OWN)
    assert large.nbytes == 4 * memory_pool._OWN
    assert large.data_ptr() != memory_pool.scratch(LIKE, SIZE).data_ptr()


def test_arrays_apart_have_memory_of_their_own_size() -> None:
    address = memory_pool.empty(LIKE, 2 * SIZE).data_ptr()
    with memory_pool.apart():
        for found in (memory_pool.empty(LIKE, SIZE, 2), memory_pool.inner(LIKE, SIZE)):
            assert found.untyped_storage().nbytes() == found.nbytes
            assert found.data_ptr() != address
    assert memory_pool.empty(LIKE, SIZE, 2).data_ptr() == address


def test_where_too_much_is_idle_what_was_not_used_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [SIZE, 2 * SIZE, 4 * SIZE]
    for size in (*sizes, SIZE):
        memory_pool.empty(LIKE, size)
    monkeypatch.setattr(memory_pool, "KEPT", 4 * 5 * SIZE)
    held = memory_pool.empty(LIKE, 8 * SIZE)
    assert [block.capacity for block in memory_pool._pool[LIKE.dtype]] == [SIZE, 4 * SIZE, 8 * SIZE]
    monkeypatch.setattr(memory_pool, "KEPT", 4 * SIZE)
    memory_pool.empty(LIKE, 16 * SIZE)
    assert [block.capacity for block in memory_pool._pool[LIKE.dtype]] == [SIZE, held.numel(), 16 * SIZE]


@pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")
def test_a_budget_is_counted_in_what_arrays_need() -> None:
    cell, xs = es.LSTM(3, 64), torch.randn(512, 9, 3)
    state = cell.initial_state(512, xs)

    def needed() -> int:
        return bytes_of_step(lambda model, given, state: es.scan(cell, given[0], state), cell, xs, state)

    first = needed()
    memory_pool.clear()
    memory_pool.empty(LIKE, 64 * SIZE)
    assert needed() == first
    assert 4 * 64 * 6 < first / 512 < 4 * 64 * 9
