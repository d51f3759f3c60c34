"""How the command ends: what a user can cause is one message and an exit code, whatever became of its streams.

0 done, 2 wrong use, nowhere to write or a failure in a file of the user's, 3 diverged, 130 and 143 interrupted, 141 the
reader has gone. Anything else is a bug and shows its traceback. Nothing heavy is imported here: Ctrl-C may come while
everything else still is.
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

from everstep.errors import EverstepError, users_part

_interrupted = False


def prepare_streams() -> None:
    """UTF-8 whatever the locale, and closed streams that behave: nothing else may be given their numbers.

    What is written to a closed stdout fails, as on a full disk; what is said to a closed stderr is lost. A closed stdin
    stays None.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def heed_interrupts() -> None:
    """Ctrl-C raises KeyboardInterrupt, as ever, but is noted: an import that it breaks may end in another error."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    if _imports_torch(frame):  # whose C++ code would abort: it calls Python and expects no exception
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
    """Writes out what the block printed, and ends the process with a message and a code where it could not go on."""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except EverstepError as error:
        _leave(error.exit_code, str(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted.")
    except BrokenPipeError:  # the reader has seen enough (… | head)
        _leave(141)
    except OSError as error:  # disk full, read-only folder, no permission
        _leave(2, _why(error))
    except Exception as error:
        if _interrupted:
            _leave(130, "interrupted.")
        if lines := users_part(error):
            _leave(2, f"the code of a file of yours fails:\n{lines}")
        raise


def _why(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}."
    if not _flushed(sys.stdout):
        return f"standard output: {'it is closed' if error.errno == errno.EBADF else reason}."
    return f"{reason}."


def _flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _leave(code: int, message: str = "") -> Any:
    """Says the message and ends; what cannot be written any more is dropped, or Python would try again and complain."""
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
