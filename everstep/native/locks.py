"""Locks that are free in a forked child, where the threads that held them do not exist."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

_all: WeakSet[threading.RLock] = WeakSet()


def new_lock() -> threading.RLock:
    """A reentrant lock that is free in a forked child."""
    lock = threading.RLock()
    _all.add(lock)
    return lock


def _open() -> None:
    for lock in list(_all):
        lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open)
