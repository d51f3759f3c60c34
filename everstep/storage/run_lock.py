"""The lock of a run folder, which admits one process at a time."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

from everstep.errors import RunError
from everstep.storage import files

_LOCKED = " "  # the first byte, which on Windows other processes cannot read while it is locked
_PID_BYTES = 32


def _no_lock(path: Path, what: str) -> RunError:
    return RunError(f"{path} is {what}; if no process uses {path.parent}, delete it")


class InUse(RunError):
    """Another process holds the lock of a run folder; `holder` is its pid."""

    def __init__(self, message: str, holder: str):
        super().__init__(message)
        self.holder = holder


def check_idle(folder: Path, what: str) -> None:
    """Raise InUse if another process works in the folder; `what` completes the message."""
    if not (folder / ".lock").exists():
        return
    try:
        with RunLock(folder):
            pass
    except InUse as error:
        raise InUse(f"{what} by another process (pid {error.holder}); wait until it ends", error.holder) from None
    except RunError:  # a folder without write access, in which this user cannot train
        pass


class RunLock:
    """Holds `RUN/.lock` within a `with` block. The system releases the lock when the process ends, however it ends.

    Raises:
        InUse: another process holds it; the message names its pid.
        RunError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with RunLock(Path(tempfile.mkdtemp())):
        ...     pass
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        with files.explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._opened()
            try:
                if not lock_descriptor(self._descriptor, blocking=False):
                    holder = self._holder()
                    raise InUse(
                        f"{self._folder} is in use by another process (pid {holder}); wait until it ends, stop it, "
                        "or use another folder",
                        holder,
                    )
                removed = os.fstat(self._descriptor).st_nlink == 0  # the previous holder removed the folder
                if not removed:
                    os.ftruncate(self._descriptor, 0)
                    files.write_all(self._descriptor, f"{_LOCKED}{os.getpid()}\n".encode())
            except BaseException:
                os.close(self._descriptor)
                raise
        if removed:
            os.close(self._descriptor)
            return self.__enter__()
        return self

    def _opened(self) -> int:
        """Open the lock file. A link is refused: in a copied folder it may point to another file."""
        path = self._folder / ".lock"
        cautious = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | files.BINARY | cautious, 0o666)
        except OSError:
            if path.is_symlink():
                raise _no_lock(path, "a link") from None
            raise
        held = os.fstat(descriptor)
        if not stat.S_ISREG(held.st_mode) or held.st_size > _PID_BYTES or held.st_nlink > 1:
            os.close(descriptor)
            raise _no_lock(path, "not a file that everstep wrote")
        return descriptor

    def _holder(self) -> str:
        os.lseek(self._descriptor, len(_LOCKED), os.SEEK_SET)
        return os.read(self._descriptor, _PID_BYTES).decode(errors="replace").strip() or "unknown"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # unlocks; the file stays, since removing it would race with the next holder
