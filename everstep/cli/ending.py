"""Exit of the command: an error that a user can cause gives one message and an exit code, even with closed streams.

0: success; 2: wrong use, no place to write, no memory, or a failure in the user's file; 3: divergence; 130 and 143:
interrupted; 141: the reader of a pipe has gone. Anything else is a bug and shows its traceback. This module imports
nothing heavy, because Ctrl-C may arrive while other modules are being imported.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from everstep.errors import EverstepError, out_of_memory, users_part

NO_MEMORY = (
    "the memory does not suffice. Give this process more, or ask for less at once: smaller batches, shorter lines, a "
    "smaller model; a training that had begun goes on from its last checkpoint with `everstep train --resume RUN`."
)
_interrupted = False


def prepare_streams() -> None:
    """Set the streams to UTF-8 whatever the locale, and reserve the descriptors of closed streams.

    Writing to a closed stdout fails as on a full disk; messages to a closed stderr are lost; a closed stdin stays None.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free descriptor, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def heed_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt as usual, but record it: an interrupted import may raise another error."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    if _imports_torch(frame):  # its C++ code, which calls Python, would abort on an exception
        os.write(2, b"everstep: interrupted.\n")
        os._exit(130)
    signal.default_int_handler(number, frame)


def _imports_torch(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "torch":
            return True
        frame = frame.f_back
    return False


@contextmanager
def ended() -> Iterator[None]:
    """Flush the output of the block; on an error, end the process with a message and an exit code."""
    try:
        try:
            yield
        except SystemExit:
            _flush_output()
            raise
        _flush_output()
    except EverstepError as error:
        _leave(error.exit_code, str(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted.")
    except BrokenPipeError:  # the reader closed the pipe (… | head)
        _leave(141)
    except OSError as error:  # disk full, read-only folder, no permission
        _leave(2, _why(error))
    except Exception as error:
        if _interrupted:
            _leave(130, "interrupted.")
        if out_of_memory(error):
            _leave(2, NO_MEMORY)
        if lines := users_part(error):
            _leave(2, f"the code of a file of yours fails:\n{lines}")
        raise


def _flush_output() -> None:
    """Flush stdout; the error names it, since a failed write of more than a buffer leaves nothing to flush again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise OSError(error.errno, reason, "standard output") from None


def _why(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}."
    if (
        error.errno == errno.EBADF
    ):  # of what exceeds a buffer nothing is left to flush; another file may have its number
        return "standard output: it is closed."
    if not _flushed(sys.stdout):
        return f"standard output: {reason}."
    return f"{reason}."


def _flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _leave(code: int, message: str = "") -> Any:
    """Print the message and exit; unwritable output is dropped, or Python would retry and complain."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending
    if message:
        with suppress(OSError):
            print(f"everstep: {message}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        if not _flushed(stream):
            with suppress(OSError, ValueError):  # ValueError: no file behind it
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(code)
