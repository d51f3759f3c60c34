"""Work that can be cancelled from outside: long loops ask between two parts whether somebody still waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CHECK: ContextVar[Callable[[], None] | None] = ContextVar("everstep_cancellation", default=None)


@contextmanager
def cancelled_by(check: Callable[[], None]) -> Iterator[None]:
    """Within the block, and in this thread, `check_cancelled` calls `check`, which raises to end the work.

    >>> def stop():
    ...     raise TimeoutError("too late")
    >>> with cancelled_by(stop):
    ...     check_cancelled()
    Traceback (most recent call last):
    TimeoutError: too late
    >>> check_cancelled()
    """
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check_cancelled() -> None:
    """Raise what ends the work, if it is cancelled. Called by searches at each step, and by predictions at each batch.

    It costs less than a microsecond where nobody cancels.
    """
    check = _CHECK.get()
    if check is not None:
        check()
