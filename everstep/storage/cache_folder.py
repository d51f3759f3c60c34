"""The folder for cached files that can be recomputed: tokenised corpora and compiled steps."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

from everstep.errors import DataError

_STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """EVERSTEP_CACHE if set, else `everstep` in the system's cache folder (`~/.cache` on Linux).

    Raises:
        RuntimeError: the path contains a home folder that does not exist.
    """
    named = os.environ.get("EVERSTEP_CACHE")
    found = Path(named) if named else user_cache_path("everstep", appauthor=False)
    return found.expanduser().absolute()


def made_aside(folder: Path) -> Path:
    """A new temporary folder beside `folder`; old temporary folders of dead processes are removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))


def publish(aside: Path, folder: Path) -> None:
    """Rename a finished folder to its final name; if that exists, do nothing (the caller checks the existing one)."""
    try:
        aside.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def discard(folder: Path) -> None:
    """Remove a folder that other processes may be reading; they keep what they have mapped."""
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    with contextlib.suppress(FileNotFoundError):  # another process was first
        folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def cache_explained(cache: Path) -> Iterator[None]:
    """Convert an OSError about the cache folder into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{cache}: token files cannot be written there ({error.strerror or error}); "
            "make room, or set EVERSTEP_CACHE to a folder that can be written"
        ) from error
