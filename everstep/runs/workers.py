"""Independent jobs in parallel processes, which end with their parent."""

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
    """Yield (name, `work(job)`) for every job, as they finish; in this process if `processes` is 1.

    >>> dict(in_processes(str, {"a": 1, "b": 2}, processes=1))
    {'a': '1', 'b': '2'}

    Args:
        work: a module-level function, so that another process can import it.
        jobs: the argument of each call, by name.
        processes: number of processes.
        begin: called at the start of each new process.

    Raises:
        RunError: a process was killed.
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
        raise RunError("a worker process was killed (out of memory?); run the same command to continue") from None


@contextmanager
def stoppable(unharmed: str) -> Iterator[None]:
    """Convert SIGINT and SIGTERM into `Interrupted`, with a message that says what is preserved (`unharmed`).

    Raises:
        Interrupted: a signal arrived.
    """
    caught: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        raise KeyboardInterrupt  # not an `Exception`, so that no handler takes it for an error of the work

    main = threading.current_thread() is threading.main_thread()  # other threads cannot set handlers
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
    """`work` in another process, which SIGTERM ends."""
    try:
        return work(job)
    except Interrupted:
        os._exit(1)


def kept(out: object) -> str:
    """A sentence on what an interruption preserves of resumable work."""
    return f"what was finished is in {out}, and the same command goes on"
