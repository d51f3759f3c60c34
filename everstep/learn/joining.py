"""Joining the processes of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    try:
        yield group
    finally:
        _joined.pop()
        group.close()
