"""Run folders: whether a folder holds a run, and how a run begins.

A run begins under the folder's lock and writes `config.yaml` last; a folder holds a run if that file exists. So of two
runs that begin at once, one is refused before it writes anything, and a run stopped earlier can begin anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from everstep.errors import RunError

RECIPE, ENVIRONMENT, CODE = "config.yaml", "environment.json", "code"
_BEGINNING = (".lock", ENVIRONMENT, CODE)  # files that may exist before config.yaml, besides those of the job
_TEMPORARY = ".tmp-"


def refuse_url(folder: Path) -> None:
    """Refuse a run folder at a URL, such as `s3://bucket/run`.

    Raises:
        RunError: it is one.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder), re.IGNORECASE):  # a Path has one slash where a URL has two
        raise RunError(
            f"{folder}: a run is a folder of a file system, which can lock and rename; expected its path, got a URL. "
            "Data may be at URLs; a finished run may be copied there"
        )


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run."""
    return (folder / RECIPE).is_file()


def refuse_no_run(folder: Path) -> None:
    """Raise unless `folder` holds a run.

    Raises:
        RunError: it does not exist, is a file, has no recipe, or is a URL.
    """
    refuse_url(folder)
    if not is_run(folder):
        what = f"has no {RECIPE}" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise RunError(f"{folder} is not a run: it {what}; expected the folder of a training, as --out named it")


def is_free(folder: Path, files: Sequence[str] = ()) -> bool:
    """Whether a run may begin in `folder`: it is missing, empty, or holds only the remains of an incomplete beginning.

    `files` are those that the job writes at the beginning.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return not folder.is_symlink()
    except NotADirectoryError:
        return not os.path.lexists(folder)  # creating it will report that a parent is a file
    ours = all(name in (*_BEGINNING, *files) or name.startswith(_TEMPORARY) for name in names)
    return not names or (".lock" in names and ours)


@contextmanager
def begun(out: Path, names: Sequence[str] = ()) -> Iterator[None]:
    """Create the folder and hold its lock during the block, which must write the recipe last.

    If the block fails, the folder is removed. `names` are the files that the job writes at the beginning.

    Raises:
        RunError: the folder is not free, another process begins a run in it, or it cannot be created.
    """
    from everstep.storage import files
    from everstep.storage.run_lock import RunLock

    refuse_url(out)
    taken = RunError(f"{out} exists and is never overwritten; give another folder, or delete it")
    try:
        if out.exists() and not is_free(out, names):
            raise taken
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise RunError(f"{out}: cannot make a run there ({error.strerror})") from None
    with RunLock(out):
        if not is_free(out, names):  # another process has just created it
            raise taken
        try:
            yield
        except BaseException:
            with suppress(OSError):
                for path in out.iterdir():
                    files.remove(path)
                out.rmdir()
            raise
