"""Many independent attempts in parallel processes, each of which ends with the one that began it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from everstep.errors import Interrupted, RunError
from everstep.processes import process_pool

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
    try:
        with process_pool(min(processes, len(jobs)), begin) as pool:
            names = {pool.submit(_stoppable, work, job): name for name, job in jobs.items()}
            for future in as_completed(names):
                yield names[future], future.result()
    except BrokenProcessPool:
        raise RunError("a process ended without a word (out of memory?); the same command goes on") from None


@contextmanager
def stoppable(unharmed: str) -> Iterator[None]:
    """Says of an interruption, by Ctrl-C or SIGTERM, what it did not harm.

    Raises:
        Interrupted: one came.
    """
    caught: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        raise KeyboardInterrupt  # which nobody on its way takes for an error of the work

    main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        number = stop.signal_number if isinstance(stop, Interrupted) else (caught or [signal.SIGINT])[0]
        raise Interrupted(f"stopped by {signal.Signals(number).name}; {unharmed}", number) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _stoppable(work: Callable[[Job], Result], job: Job) -> Result:
    """`work` in a further process, which a signal ends."""
    try:
        return work(job)
    except Interrupted:
        os._exit(1)


def kept(out: object) -> str:
    """What an interruption leaves of work that goes on by itself."""
    return f"what was finished is in {out}, and the same command goes on"
