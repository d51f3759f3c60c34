"""Threads for work that takes long, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from everstep.errors import counted
from everstep.ship.serving.faults import Fault

T = TypeVar("T")


class Stop:
    """Tells work in a thread that nobody waits for it any more.

    Args:
        seconds: time that the work has.
    """

    def __init__(self, seconds: float):
        self.seconds, self._until, self._left = seconds, time.monotonic() + seconds, threading.Event()

    def set(self) -> None:
        """The client has left."""
        self._left.set()

    def check(self) -> None:
        """Called by the work between its parts.

        Raises:
            Fault: 499, the client has left; 503, the time is over.
        """
        if self._left.is_set():
            raise Fault(499, "the client has left")
        if time.monotonic() > self._until:
            raise late(self.seconds)


def late(seconds: float) -> Fault:
    """The fault of work that takes too long."""
    return Fault(503, f"this takes longer than {seconds:g} seconds, the limit of this server; ask for less at once")


class WorkPool:
    """A bounded queue of work, and threads that do it.

    Args:
        workers: threads.
        most_waiting: most work that waits; more is refused.
    """

    def __init__(self, workers: int, most_waiting: int):
        self.workers, self._most_waiting = workers, most_waiting
        self._threads = ThreadPoolExecutor(workers, "everstep-serve")
        all_here = threading.Barrier(workers)  # they begin now: without memory, Python waits for ever for a new one
        for _ in range(workers):
            self._threads.submit(all_here.wait)
        self._slots = asyncio.Semaphore(workers)
        self.waiting = 0

    async def run(self, work: Callable[[Stop], T], seconds: float, alone: asyncio.Semaphore | None = None) -> T:
        """The result of `work` in a thread. If the caller is cancelled, `work` learns it by its `Stop`.

        Args:
            work: the work, which checks its `Stop` between parts.
            seconds: most seconds to wait and to work.
            alone: held while the work runs.

        Raises:
            Fault: 429, too much waits; 503, it takes too long. Also whatever `work` raises.
        """
        if self.waiting >= self._most_waiting:
            raise Fault(429, f"{counted(self.waiting, 'request')} wait for a thread; try again later", retry_after=1)
        stop = Stop(seconds)
        held: list[asyncio.Semaphore] = []
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                for one in (alone, self._slots):
                    if one is not None:
                        await one.acquire()
                        held.append(one)
        except TimeoutError:
            _release(held)
            raise late(seconds) from None
        except BaseException:
            _release(held)
            raise
        finally:
            self.waiting -= 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
        # the thread holds its place until it ends, whether or not somebody still waits for it
        future.add_done_callback(lambda done: _ended(held, done))
        try:
            await asyncio.wait({future}, timeout=seconds + 1)
        except asyncio.CancelledError:
            stop.set()
            raise
        if not future.done():
            stop.set()
            raise late(seconds)
        return future.result()

    def close(self) -> None:
        """Start no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _release(held: list[asyncio.Semaphore]) -> None:
    for one in held:
        one.release()


def _ended(held: list[asyncio.Semaphore], done: asyncio.Future[T]) -> None:
    _release(held)
    if not done.cancelled():
        done.exception()  # looked at, also where nobody waits for it
