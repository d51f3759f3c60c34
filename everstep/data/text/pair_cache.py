"""Token files of pairs: tokenised once, into a folder that later runs map into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.pair_batches import TokenSequences
from everstep.errors import DataError
from everstep.storage.cache_folder import cache_explained, cache_folder, discard, made_aside, publish
from everstep.storage.reading import open_regular, parse_json, read_small, sealed, unsealed
from everstep.storage.scratch import release

_META, _SIDES = "pairs.json", ("source", "target")
_LARGEST = 1 << 20  # largest pairs.json in bytes
_HASHED = 1 << 21  # numbers hashed at a time
_STARTS, _LENGTHS = "<i8", "<i4"
Block = tuple[TokenSequences, TokenSequences]


class StoredPairs(NamedTuple):
    """Pairs of sequences whose tokens are mapped from files, and what was noted of them.

    Attributes:
        source, target: the tokens, starts and lengths; all are mapped.
        notes: JSON.
    """

    source: TokenSequences
    target: TokenSequences
    notes: dict[str, Any]


def stored_pairs(
    request: dict[str, Any], blocks: Callable[[], Iterator[Block]], notes: Callable[[], dict[str, Any]]
) -> StoredPairs:
    """The pairs of a request from the cache; else those of `blocks`, written to it one by one.

    The folder is verified by its SHA-256 when it is opened, is written aside and renamed: a crash leaves nothing
    partial, and two processes may write the same pairs at once.

    Args:
        request: JSON with all that determines the tokens, such as the digests of files and vocabularies.
        blocks: gives the pairs, some at a time.
        notes: called after the last block; what it returns is stored too.

    Raises:
        DataError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps(request, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]
    folder = cache_folder() / f"pairs-{key}"
    if (found := _open(folder, request)) is not None:
        return found
    with cache_explained(folder.parent):
        aside = made_aside(folder)
        try:
            meta = _write(aside, blocks())
            content = sealed({"request": request, "notes": notes(), **meta})
            (aside / _META).write_text(json.dumps(content, allow_nan=False), "utf-8", newline="\n")
            for _ in range(10):
                publish(aside, folder)
                if (found := _open(folder, request)) is not None:
                    return found
                discard(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise DataError(
        f"{folder}: cannot be read back, or other runs keep replacing it; set EVERSTEP_CACHE to another one"
    )


def _write(folder: Path, blocks: Iterator[Block]) -> dict[str, Any]:
    """Write tokens, starts and lengths of both sides; returns the types of the tokens and the digests."""
    kinds, sizes = ["|u1", "|u1"], [0, 0]
    with ExitStack() as opened:
        files = [[opened.enter_context(path.open("wb")) for path in _paths(folder, side)] for side in _SIDES]
        for block in blocks:
            for side, part in enumerate(block):
                kinds[side] = part.tokens.dtype.str
                arrays = part.tokens, (part.starts + sizes[side]).astype(_STARTS), part.lengths.astype(_LENGTHS)
                for file, array in zip(files[side], arrays, strict=True):
                    file.write(np.ascontiguousarray(array).data)
                sizes[side] += len(part.tokens)
        for file in chain(*files):
            file.flush()
            os.fsync(file.fileno())
    digests = {side: _digest(*_mapped(folder, side, kind)) for side, kind in zip(_SIDES, kinds, strict=True)}
    return {"kinds": kinds, "digests": digests}


def _paths(folder: Path, side: str) -> list[Path]:
    return [folder / f"{side}.{name}" for name in ("bin", "starts", "lengths")]


def _mapped(folder: Path, side: str, kind: str) -> list[NDArray[Any]]:
    """The tokens, starts and lengths of one side, mapped; a file of size 0 cannot be mapped."""
    found = []
    for path, one in zip(_paths(folder, side), (kind, _STARTS, _LENGTHS), strict=True):
        os.close(open_regular(path))
        found.append(np.memmap(path, one, "r") if path.stat().st_size else np.empty(0, one))
    return found


def _open(folder: Path, request: dict[str, Any]) -> StoredPairs | None:
    """The pairs in a folder; None if it is missing, damaged, or of another request."""
    try:
        meta = unsealed(parse_json(read_small(folder / _META, _LARGEST)))
        if meta["request"] != request:
            return None
        sides = []
        for side, kind in zip(_SIDES, meta["kinds"], strict=True):
            arrays = _mapped(folder, side, kind)
            if _digest(*arrays) != meta["digests"][side]:
                return None
            sides.append(TokenSequences(*arrays))
        return StoredPairs(sides[0], sides[1], meta["notes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(*arrays: NDArray[Any]) -> str:
    """The SHA-256 of one side; pages of the maps are released as they are read."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{len(array)} ".encode())
        for start in range(0, len(array), _HASHED):
            digest.update(np.ascontiguousarray(array[start : start + _HASHED]).data)
            release(array)
    return digest.hexdigest()
