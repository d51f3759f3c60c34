"""Errors that a user can cause. Messages say who, what was expected, what was given and what to do.

The command line prints the message of an `EverstepError` without a traceback, and exits with its `exit_code`.
"""

from __future__ import annotations

import math
import traceback

USER_CODE = "everstep_user_code_"
"""Prefix of the names of modules loaded from user files that a recipe names."""


class EverstepError(Exception):
    """Base class of the errors that a user can cause."""

    exit_code = 2


class ConfigError(EverstepError):
    """A recipe or an option cannot be used: unknown key, wrong type, value out of range."""


class DataError(EverstepError):
    """Input cannot be read or used: missing, empty, not text, unknown symbols, too short."""


class RunError(EverstepError):
    """A run folder cannot be used: it exists already, is not a run, is locked, is from a newer version."""


class CheckpointError(RunError):
    """A checkpoint is incomplete or damaged; the message names the file and the reason."""


class Diverged(EverstepError):
    """Training reached NaN or infinity; the last good checkpoint is kept."""

    exit_code = 3


class Interrupted(EverstepError):
    """A signal stopped the work after saving its results. `exit_code` is 128 + the number of the signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def counted(count: int, noun: str) -> str:
    """A count with its noun, in the plural if needed.

    >>> counted(1, "token"), counted(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def check_finite(what: str, loss: float) -> None:
    """Raise unless a loss is finite.

    Raises:
        RunError: the loss is NaN or infinite; `what` names it.
    """
    if not math.isfinite(loss):
        raise RunError(f"{what} is {loss}: the model diverged or its weights are damaged")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, in the words of Python, NumPy, PyTorch, ONNX Runtime, C++ or the system.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("std::bad_alloc")), out_of_memory(RuntimeError("no"))
    (True, True, False)
    """
    if isinstance(error, EverstepError | ValueError | LookupError):  # which may quote what users wrote
        return False
    words = ("allocate memory", "out of memory", "bad_alloc", "bad allocation", "failed to map segment")
    return isinstance(error, MemoryError) or any(told in str(error) for told in words)


def users_part(error: BaseException) -> str:
    """An error as text, with its traceback reduced to the user's files; "" if it passed through none of them."""
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(USER_CODE)
    ]
    if not frames:
        return ""
    lines = traceback.StackSummary.extract(iter(frames)).format()
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
