"""Python in processes of its own, forked from one that has imported the package: importing takes two seconds a process.

What a test says about the interpreter's own start, or about its imports, still needs an interpreter of its own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
SECONDS = 120
"""After which a process counts as hanging."""


class _Streams(NamedTuple):
    read: Path
    out: Path
    told: Path
    closed: tuple[str, ...]


def _run(act: Callable[..., object], given: Sequence[Any], environment: Mapping[str, str], streams: _Streams) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(streams.read, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    for number, path in ((1, streams.out), (2, streams.told)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    for name in streams.closed:
        os.close(("stdin", "stdout", "stderr").index(name))
        setattr(sys, name, None)
    import torch

    torch.set_num_threads(1)
    act(*given)


@functools.cache
def server() -> ForkServerContext:
    """The context of processes forked from one that has the package; that one is started at the first call."""
    _CONTEXT.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where it finds that; it is given no path before 3.13
        forkserver.ensure_running()
    return _CONTEXT


def started(
    act: Callable[..., object],
    *given: Any,
    told: Path,
    out: Path | None = None,
    read: str = os.devnull,
    closed: tuple[str, ...] = (),
) -> ForkServerProcess:
    """Call a function of a module in another process, with one thread, this environment and this folder.

    Args:
        act: the function.
        given: its arguments.
        told: the file at whose end its standard error is written.
        out: that of its standard output, or a pipe; None: `told` too.
        read: the file that is its standard input.
        closed: "stdin", "stdout", "stderr": those that are closed, and None in `sys`, as Python begins without them.
    """
    streams = _Streams(Path(read), out or told, told, closed)
    process = server().Process(target=_run, args=(act, given, dict(os.environ), streams))
    process.start()
    return process


def _in_environment(environment: Mapping[str, str], act: Callable[..., object], given: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    act(*given)


class Workers(type(_CONTEXT)):  # type: ignore[misc]
    """The start of a pool's processes as forks, with this environment; for `processes.get_context`."""

    def Process(self, *, target: Callable[..., object], args: Sequence[Any]) -> ForkServerProcess:
        return server().Process(target=_in_environment, args=(dict(os.environ), target, args))


def ended(process: ForkServerProcess) -> int:
    """Wait for a process; its exit code, below zero for a signal."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process has not ended after {SECONDS} s")
    return process.exitcode


def command(arguments: Sequence[str]) -> None:
    """`everstep ARGUMENTS`, as its entry point runs it; to be called in another process."""
    from everstep.cli import main

    sys.argv[1:] = arguments
    main()
