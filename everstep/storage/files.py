"""Crash-safe writing: every write, fsync and rename of a run goes through these functions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from everstep.errors import RunError

TEMPORARY = ".tmp-"  # prefix of a name until its content is complete

BINARY = getattr(os, "O_BINARY", 0)
"""Flag of `os.open` for binary mode; without it Windows converts line ends."""

# Module-level names, so that a test can make the n-th call of each fail.
_write = os.write
_fsync = os.fsync
_rename = os.replace


@contextmanager
def explained(folder: Path, then: str = "resume") -> Iterator[None]:
    """Convert an `OSError` of the block (disk full, read-only folder, …) into a `RunError` that says what to do.

    `then` is the last step of its advice.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise RunError(
            f"cannot write {where}: {error.strerror or error}. What was finished in {folder} is "
            f"untouched. Make the folder writable or free some space, then {then}"
        ) from error


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`, repeating partial writes."""
    rest = memoryview(data)
    while rest:
        rest = rest[_write(descriptor, rest) :]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, if it exists; the target of a link is not touched."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_link(folder: Path) -> None:
    """Refuse a run folder that is a link, because writes and removals would affect another folder.

    Raises:
        RunError: it is a link.
    """
    if folder.is_symlink():
        raise RunError(f"{folder} is a link to {os.readlink(folder)}; put a folder there, or delete it")


def write_file(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, which may come in pieces, to a new file `path` and fsync it; if that fails, there is no file.

    An existing file is removed first and never written to, since it may be a link to another file, or a pipe.
    """
    remove(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
    try:
        try:
            for piece in [data] if isinstance(data, bytes | bytearray | memoryview) else data:
                write_all(descriptor, piece)
            _fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Fsync the folder `folder`; does nothing on Windows, which cannot."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within one folder and fsync the folder; a file at `target` is replaced atomically."""
    _rename(source, target)
    sync_folder(target.parent)


def replace_file(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace the content of `path` by `data`, which may come in pieces, atomically: readers see the old or the new.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x"
        >>> replace_file(path, b"all")
        >>> path.read_bytes()
        b'all'
    """
    temporary = path.with_name(TEMPORARY + path.name)
    write_file(temporary, data)
    rename(temporary, path)
