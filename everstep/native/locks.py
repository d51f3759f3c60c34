"""Locks that are open in a forked child: the threads that held them are not there to let go."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

_all: WeakSet[threading.RLock] = WeakSet()


def new_lock() -> threading.RLock:
    """A lock that the thread which holds it may take again. In a forked child no one holds it."""
    lock = threading.RLock()
    _all.add(lock)
    return lock


def _open() -> None:
    for lock in list(_all):
        lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open)
