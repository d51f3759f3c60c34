"""Arrays within a memory limit: what exceeds it lies in mapped temporary files."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from everstep.errors import DataError
from everstep.storage.scratch import release

ROW_BYTES = 128
"""Bytes of temporary arrays for each row of a block, the copies of a sort included."""
LEAST_ROWS = 1 << 12
"""Rows of the smallest block; smaller ones would spend their time in Python."""
_ZEROS = bytes(1 << 20)


class Workspace:
    """Makes arrays, half of `limit` bytes of them in memory and the others in temporary files that are mapped.

    The other half of the limit is for blocks of `rows` rows, in which all work on such arrays is done. The memory or
    the disk space of an array is free again once nothing refers to it.

    Args:
        limit: bytes of memory. Mapped pages, which the system may drop at any time, do not count.

    >>> work = Workspace(1 << 20)
    >>> work.array(3, np.int64).tolist(), isinstance(work.array(1 << 20, np.int64), np.memmap)
    ([0, 0, 0], True)
    """

    def __init__(self, limit: int):
        self.rows = max(LEAST_ROWS, limit // 2 // ROW_BYTES)
        self._left = limit // 2

    def array(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """Zeros, (size,).

        Raises:
            DataError: the disk has no room for them.
        """
        held = size * np.dtype(dtype).itemsize
        if held <= self._left:
            self._left -= held
            found = np.zeros(size, dtype)
            weakref.finalize(found, self._give_back, held)
            return found
        with tempfile.TemporaryFile(prefix="everstep-ngrams-") as file:  # the map keeps it
            _reserve(file, held)
            return np.memmap(file, dtype, "r+", shape=(size,))

    def _give_back(self, held: int) -> None:
        self._left += held

    def blocks(self, size: int, *arrays: NDArray[Any] | None) -> Iterator[slice]:
        """Slices of at most `rows` rows that cover `size` rows; mapped pages of `arrays` are released after each."""
        for start in range(0, size, self.rows):
            yield slice(start, min(start + self.rows, size))
            for array in arrays:
                release(array)


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file `size` bytes on the disk. A hole that is mapped would kill the process where the disk is full.

    Raises:
        DataError: there is no room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS, Windows
            for start in range(0, size, len(_ZEROS)):
                file.write(_ZEROS[: size - start])
            file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{tempfile.gettempdir()}: no room for {size:,} bytes of counts ({error.strerror}); expected some there, "
            "because model.memory_mib does not hold them: set TMPDIR to a folder with more room, or raise it"
        ) from None
