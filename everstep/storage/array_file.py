"""Files of named arrays that are mapped into memory: safetensors files whose header says what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.errors import RunError
from everstep.storage.reading import open_regular, parse_json, reason

_HEADER = 1 << 20  # largest header in bytes
_PIECE = 1 << 24  # entries that are written at a time
_TYPES = {"I64": "<i8", "F64": "<f8", "F32": "<f4"}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def array_pieces(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> Iterator[bytes]:
    """The content of a file of arrays (N,) of int64, float64 or float32, in pieces.

    Args:
        arrays: by name; those of eight bytes first, so that each is aligned to its size.
        about: what else `mapped_arrays` returns; "format" says what the file is.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for name, array in arrays.items():
        size = array.size * array.dtype.itemsize
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        for start in range(0, len(array), _PIECE):
            yield np.ascontiguousarray(array[start : start + _PIECE]).tobytes()


def mapped_arrays(path: Path, format_: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Map the arrays of a file of `array_pieces` into memory, and what it says about them; reads its header alone.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: the file is missing, damaged, or of another format.
    """
    with open(open_regular(path), "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(min(size, _HEADER)))
    about = header.pop("__metadata__")
    if about["format"] != format_:
        raise ValueError("its format is another one")
    return {name: _mapped(path, 8 + size, entry) for name, entry in header.items()}, about


@contextmanager
def damage_told(path: Path, what: str) -> Iterator[None]:
    """Explain what `mapped_arrays`, or the use of its arrays, finds wrong with a file; `what` it should be.

    Raises:
        RunError: the file is missing, damaged, or another one.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: expected {what}; it is missing or damaged ({reason(error)})") from None


def _mapped(path: Path, begin: int, entry: dict[str, Any]) -> NDArray[Any]:
    """One array of the file."""
    dtype = np.dtype(_TYPES[entry["dtype"]])
    first, last = entry["data_offsets"]
    (size,) = entry["shape"]
    if last - first != size * dtype.itemsize:
        raise ValueError("an array has another size than its header says")
    return np.memmap(path, dtype, "r", begin + first, (size,)) if size else np.empty(0, dtype)
