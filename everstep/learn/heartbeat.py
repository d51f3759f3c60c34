"""Heartbeats: how the processes of a training notice that one of them is lost, whatever they wait for."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

PERIOD, SILENCE, GRACE = 1.0, 9.0, 3.0
"""Seconds between two beats; without one after which a process is lost; left to this one to end by itself."""
_OBITUARY = "lost"


class Heartbeat:
    """Threads that count in a store while a `with` block runs, and watch the counts of others.

    The leader watches all, all others watch the leader, and whom it misses. If a process has not counted for `SILENCE`
    seconds, this one is ended with a message, unless it ends by itself within `GRACE` seconds: it may wait for the lost
    one in a call that nothing else ends.

    Args:
        store: a connection of its own to the store of the process group; has `add(key, n)`, which returns the sum.
        rank, size: the number of this process, and of all.
        message: what to say about a lost process, by its number.
        leave: ends this process.
    """

    def __init__(
        self, store: Any, rank: int, size: int, message: Callable[[int], str], leave: Callable[[int], None] = os._exit
    ):
        self._store, self._rank, self._message, self._leave = store, rank, message, leave
        self._others = range(1, size) if rank == 0 else range(1)
        self._heard = dict.fromkeys(self._others, time.monotonic())
        self._missed: int | None = None
        self._ended = threading.Event()
        # Two, since a call of a store whose machine is gone may never return.
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._talk, self._watch)]

    def __enter__(self) -> Heartbeat:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PERIOD)

    def _talk(self) -> None:
        """Count, and look whether others do."""
        counts = dict.fromkeys(self._others, -1)
        while not self._ended.wait(PERIOD):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                for other in self._others:
                    if (count := self._store.add(f"beat/{other}", 0)) != counts[other]:
                        counts[other], self._heard[other] = count, time.monotonic()
                lost = self._store.add(_OBITUARY, 0) - 1
            except RuntimeError:  # the store is gone, and then nothing is heard of others
                continue
            if lost >= 0:
                self._missed = lost

    def _watch(self) -> None:
        """End this process once another is lost."""
        before = time.monotonic()
        while not self._ended.wait(PERIOD):
            now = time.monotonic()
            if now - before > SILENCE / 2:  # this process itself was stopped, and so were perhaps the others
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            silent = [other for other, last in self._heard.items() if now - last > SILENCE]
            lost = silent[0] if silent else self._missed
            if lost is not None:
                self._end(lost)
                return

    def _end(self, lost: int) -> None:
        if self._rank == 0:
            with suppress(RuntimeError):
                self._store.add(_OBITUARY, lost + 1)
        if not self._ended.wait(GRACE):
            sys.stderr.write(f"\neverstep: {self._message(lost)}\n")
            sys.stderr.flush()
            self._leave(2)
