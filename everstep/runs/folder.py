"""The folder of a run: whether it holds one, and how one begins in it.

`config.yaml` decides: a run begins under the folder's lock, and that file is the last one written. So of two that begin
at once, one is refused before it has written anything, and what was stopped before is no run yet and can begin anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from everstep.errors import RunError

RECIPE, ENVIRONMENT, CODE = "config.yaml", "environment.json", "code"
_BEGINNING = (".lock", ENVIRONMENT, CODE)  # what there may be before the recipe is, beside the files of the job
_TEMPORARY = ".tmp-"


def is_run(folder: Path) -> bool:
    """Whether a run has begun there."""
    return (folder / RECIPE).is_file()


def is_free(folder: Path, files: Sequence[str] = ()) -> bool:
    """Whether a run may begin there: nothing is there, or only what was left where one was stopped as it began.

    `files` are those that the job writes as a run begins.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return not folder.is_symlink()
    except NotADirectoryError:
        return not os.path.lexists(folder)  # making it will say that it stands in a file
    ours = all(name in (*_BEGINNING, *files) or name.startswith(_TEMPORARY) for name in names)
    return not names or (".lock" in names and ours)


@contextmanager
def begun(out: Path, names: Sequence[str] = ()) -> Iterator[None]:
    """Make the folder and hold its lock; take it away again if the block, which is to write the recipe last, fails.

    `names` are the files that the job writes as a run begins.

    Raises:
        RunError: there is something, another process begins a run there, or it cannot be made.
    """
    from everstep.storage import files
    from everstep.storage.run_lock import RunLock

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
        if not is_free(out, names):  # as another process made it until now
            raise taken
        try:
            yield
        except BaseException:
            with suppress(OSError):
                for path in out.iterdir():
                    files.remove(path)
                out.rmdir()
            raise
