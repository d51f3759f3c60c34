"""Joining the processes of a training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from everstep.learn.world import World
from everstep.processes import world_size

_joined: list[World] = []


@contextmanager
def joined() -> Iterator[World]:
    """The processes of this training: those that `torchrun` started, or this one alone.

    A block within a block has the same. `torch.distributed` is imported only where there are several.

    Raises:
        ConfigError, RunError: see `ProcessGroup`.

    Example:
        >>> with joined() as world:
        ...     world.size
        1
    """
    if _joined:
        yield _joined[-1]
        return
    if world_size() == 1:
        yield World()
        return
    from everstep.learn.process_group import ProcessGroup

    group = ProcessGroup()
    _joined.append(group)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _later) if main else None
    try:
        yield group
    finally:
        _joined.pop()
        group.close()
        if main and not group.lost:  # else torchrun's SIGTERM would come before the message
            signal.signal(signal.SIGTERM, before)


def _later(number: int, frame: FrameType | None) -> None:
    """A process that waits for others ends with them: torchrun signals all, and the connection to the first closes."""
