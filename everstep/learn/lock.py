"""One process at a time in a run folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from everstep.errors import RunError
from everstep.learn import files


class RunLock:
    """Holds `RUN/.lock` within a `with` block. The system lets go of it when the process ends, however it ends.

    Raises:
        RunError: another process holds it (its pid is named), or the folder cannot be written to.

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
            self._descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(self._descriptor)
                raise RunError(
                    f"{self._folder} is in use by another process (pid {holder}); wait until it ends, stop it, or use "
                    "another folder"
                ) from None
            except OSError:
                os.close(self._descriptor)
                raise
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # which unlocks; the file stays, since removing it would race with the next holder
