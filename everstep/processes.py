"""Worker processes that end with their parent, however it ends; and those that `torchrun` has started."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any


@contextmanager
def process_pool(processes: int, begin: Callable[..., None] | None = None, *arguments: Any) -> Iterator[Any]:
    """A `ProcessPoolExecutor` for a `with` block. An error or an interruption of the block ends the workers.

    Workers also end if this process is killed.

    Args:
        processes: number of processes.
        begin: a module-level function, called at the start of each process.
        arguments: the arguments of `begin`.
    """
    others = set(active_children())
    most = 61 if sys.platform == "win32" else processes  # 61 is the limit of Windows
    pool = ProcessPoolExecutor(min(processes, most), get_context("spawn"), _begin, (begin, arguments))
    try:
        yield pool
    except BaseException:
        for child in set(active_children()) - others:  # else the pool would wait for their current work
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()  # waits on a pipe that the system closes when the parent ends
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; only the parent reacts
    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def world_size() -> int:
    """The number of processes that `torchrun` has started; 1 if this one was not started so.

    >>> world_size()
    1
    """
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if size.isdecimal() and "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process among those that `torchrun` has started; 0 if it was not started so."""
    number = os.environ.get("RANK", "")
    return int(number) if number.isdecimal() and world_size() > 1 else 0


def launched(command: str = "everstep") -> str:
    """The command to type for `everstep` so that as many processes run as now."""
    if world_size() == 1:
        return command
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    nodes = "" if local == str(world_size()) else "--nnodes … "
    return f"torchrun {nodes}--nproc-per-node {local or '…'} -m everstep"
