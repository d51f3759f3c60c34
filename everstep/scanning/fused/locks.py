"""Locks that are open in a forked child: the threads that held them are not there to let go."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet


class Lock:
    """A lock that the thread which holds it may take again. In a forked child it is a fresh one."""

    def __init__(self) -> None:
        self._inner = threading.RLock()
        _all.add(self)

    def __enter__(self) -> None:
        self._inner.acquire()

    def __exit__(self, *_: object) -> None:
        self._inner.release()

    def renew(self) -> None:
        """Open it, whoever holds it."""
        self._inner = threading.RLock()


_all: WeakSet[Lock] = WeakSet()


def _renew() -> None:
    for lock in list(_all):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
