"""One process at a time in a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

from everstep.errors import RunError
from everstep.learn import files

_LOCKED = " "  # what the first byte says, which no one else can read on Windows while it is locked


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
            self._descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | files.BINARY, 0o666)
            try:
                if not lock_descriptor(self._descriptor, blocking=False):
                    raise RunError(
                        f"{self._folder} is in use by another process (pid {self._holder()}); wait until it ends, "
                        "stop it, or use another folder"
                    )
                os.ftruncate(self._descriptor, 0)
                files.write_all(self._descriptor, f"{_LOCKED}{os.getpid()}\n".encode())
            except BaseException:
                os.close(self._descriptor)
                raise
        return self

    def _holder(self) -> str:
        os.lseek(self._descriptor, len(_LOCKED), os.SEEK_SET)
        return os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # which unlocks; the file stays, since removing it would race with the next holder
