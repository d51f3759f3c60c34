"""Further processes that end with the one that began them, however that one ends."""

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
    """A `ProcessPoolExecutor` for a `with` block; where that ends by an error or an interruption, so does its work.

    Where this process is killed, the further ones see it and end, too.

    Args:
        processes: how many.
        begin: called at the start of each, a function of a module.
        arguments: what it is called with.
    """
    others = set(active_children())
    most = 61 if sys.platform == "win32" else processes  # what Windows can wait for
    pool = ProcessPoolExecutor(min(processes, most), get_context("spawn"), _begin, (begin, arguments))
    try:
        yield pool
    except BaseException:
        for child in set(active_children()) - others:  # the pool would wait for what they are at
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()  # a pipe whose other end the system closes with the parent
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; it is the first one's to act on
    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin(*arguments)
