"""Arrays in temporary files that are mapped into memory, and pages of maps that are given back."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from everstep.errors import DataError


def scratch(parts: Iterable[NDArray[Any]], kind: DTypeLike) -> NDArray[Any]:
    """An array (N,) of `kind` that holds the parts one after another, mapped from a temporary file without a name.

    All of the file is written before it is mapped, so that a full disk is an error here, not a signal later. One part
    alone stays in memory.

    >>> scratch([np.arange(3), np.arange(2)], np.int32).tolist()
    [0, 1, 2, 0, 1]

    Raises:
        DataError: the file cannot be written.
    """
    parts = iter(parts)
    first, second = next(parts, np.empty(0)), next(parts, None)
    if second is None:
        return np.array(first, kind)
    try:
        with tempfile.TemporaryFile(prefix="everstep-") as file:
            for part in chain([first, second], parts):
                file.write(np.ascontiguousarray(part, kind).data)
            file.flush()
            return np.memmap(file, kind, "r+")
    except OSError as error:
        raise DataError(f"a temporary file cannot be written ({error}); set TMPDIR to a folder with space") from None


def release(*arrays: Any) -> None:
    """Give back the pages of those arrays that are mapped whole from files; they are read again when they are used."""
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mapped, "madvise"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)
