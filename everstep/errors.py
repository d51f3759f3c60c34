"""What can go wrong for a user, as exceptions whose message says who, what was expected, what came and what to do.

The command line prints the message of an `EverstepError` and leaves with its `exit_code`; no traceback is shown.
"""

from __future__ import annotations

import math
import traceback

USER_CODE = "everstep_user_code_"
"""What the names of modules begin with that are made of a file of the user's, which a recipe names."""


class EverstepError(Exception):
    """Base of every error a user can cause or meet."""

    exit_code = 2


class ConfigError(EverstepError):
    """A recipe or an option that cannot be used: unknown key, wrong type, impossible value."""


class DataError(EverstepError):
    """Input that cannot be read or used: missing, empty, not text, unknown symbols, too short."""


class RunError(EverstepError):
    """A run folder that cannot be used: it exists, is no run, is locked, is of a newer version."""


class CheckpointError(RunError):
    """A checkpoint that is incomplete or damaged; names the file and the reason."""


class Diverged(EverstepError):
    """Training met NaN or infinity; the last good checkpoint was kept."""

    exit_code = 3


class Interrupted(EverstepError):
    """Training was asked to stop by a signal, finished its step and saved. `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def counted(count: int, noun: str) -> str:
    """A number of things in words.

    >>> counted(1, "token"), counted(2000, "token")
    ('1 token', '2,000 tokens')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def check_finite(what: str, loss: float) -> None:
    """Refuse a score that is none.

    Raises:
        RunError: it is NaN or infinite; `what` says of what it is.
    """
    if not math.isfinite(loss):
        raise RunError(f"{what} is {loss}: the model diverged or its weights are damaged")


def users_part(error: BaseException) -> str:
    """An error with its traceback cut to files of the user's that a recipe names; "" if it passed through none."""
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(USER_CODE)
    ]
    if not frames:
        return ""
    lines = traceback.StackSummary.extract(iter(frames)).format()
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
