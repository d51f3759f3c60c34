"""Many independent attempts in parallel processes, each of which ends with the one that began it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import TypeVar

from everstep.errors import Interrupted, RunError

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Mapping[str, Job], processes: int, begin: Callable[[], None] | None = None
) -> Generator[tuple[str, Result]]:
    """`work` of every job, by name, as they are done; in this process if `processes` is 1.

    >>> dict(in_processes(str, {"a": 1, "b": 2}, processes=1))
    {'a': '1', 'b': '2'}

    Args:
        work: a function of a module, so that another process finds it.
        jobs: what each is called with.
        processes: how many at a time.
        begin: called at the start of each further process.

    Raises:
        RunError: a process was ended from outside.
    """
    if processes == 1 or len(jobs) < 2:
        for name, job in jobs.items():
            yield name, work(job)
        return
    others = set(active_children())
    most = 61 if sys.platform == "win32" else processes  # what Windows can wait for
    with ProcessPoolExecutor(min(processes, len(jobs), most), get_context("spawn"), _begin, (begin,)) as pool:
        names = {pool.submit(_stoppable, work, job): name for name, job in jobs.items()}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        except BrokenProcessPool:
            raise RunError("a process ended without a word (out of memory?); the same command goes on") from None
        except BaseException:
            for child in set(active_children()) - others:  # the pool would wait for what they are at
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def stoppable(out: Path) -> Iterator[None]:
    """Says of an interruption, by Ctrl-C or SIGTERM, what it did not harm."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted("", number)

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        name = signal.Signals(number).name
        raise Interrupted(
            f"stopped by {name}; what was finished is in {out}, and the same command goes on", number
        ) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _stoppable(work: Callable[[Job], Result], job: Job) -> Result:
    """`work` in a further process, which a signal ends."""
    try:
        return work(job)
    except Interrupted:
        os._exit(1)


def _begin(begin: Callable[[], None] | None) -> None:
    """A process that ends with the one that began it, however that one ends."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin()
