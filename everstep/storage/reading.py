"""Safe reading of untrusted files: regular files of bounded size, and strict JSON.

A pipe would block the reader for ever, and a device or a huge file would fill the memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from typing import Any, NoReturn

from everstep.errors import RunError

LARGEST_RECORDS = 1 << 30
"""Largest file of records in bytes."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading without blocking, and return its descriptor.

    Raises:
        OSError: the file is missing, cannot be read, or is not a regular file; `strerror` says which.
    """
    # Sockets, and on some systems folders, cannot be opened; checked first so that the error says what they are.
    _check_regular(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"expected a regular file, but it is {kind}", str(path))


def read_small(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; a larger file is not read.

    Raises:
        OSError: the file is missing, cannot be read, is not regular or is larger; `strerror` says which.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "x"
        >>> _ = path.write_bytes(b"all")
        >>> read_small(path, limit=10)
        b'all'
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)  # it may be growing
    if max(size, len(content)) > limit:
        held = max(size, len(content))
        raise OSError(errno.EFBIG, f"expected at most {limit:,} bytes, but it holds {held:,}", str(path))
    return content


def parse_json(content: bytes | str) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: the text is not JSON (`NaN` and `Infinity` are not), or nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in one another") from None


def read_json(path: str | os.PathLike[str], limit: int) -> Any:
    """The value in a JSON file of at most `limit` bytes.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return parse_json(read_small(path, limit))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: missing or damaged ({reason(error)})") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The value with the SHA-256 of its JSON as its last key, `seal`; an earlier seal is dropped.

    Example:
        >>> unsealed(sealed({"a": 1}))
        {'a': 1}
    """
    content = {key: part for key, part in value.items() if key != "seal"}
    return {**content, "seal": hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The value without its seal, after verification.

    Raises:
        ValueError: the value has changed, or has no seal.
    """
    if not isinstance(value, dict) or value != sealed(value):
        raise ValueError("it is not what its SHA-256 was taken of")
    return {key: part for key, part in value.items() if key != "seal"}


def reason(error: Exception) -> str:
    """The reason of an error, without the file name, which the message already contains."""
    return str(getattr(error, "strerror", None) or error)


def json_text(value: Any, **options: Any) -> str:
    """`value` as JSON, by `json.dumps` with these options; NaN and infinities, which JSON lacks, become null.

    Example:
        >>> json_text({"perplexity": float("inf")})
        '{"perplexity": null}'
    """
    return json.dumps(_with_null(value), allow_nan=False, **options)


def _with_null(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_with_null(key): _with_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(entry) for entry in value]
    return value
