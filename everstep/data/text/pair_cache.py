"""Token files of pairs: tokenised once, into a folder that later runs map into memory."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.pair_batches import TokenSequences
from everstep.errors import DataError
from everstep.storage.cache_folder import cache_explained, cache_folder, discard, made_aside, publish
from everstep.storage.reading import open_regular, parse_json, read_small, sealed, unsealed

_META, _SIDES = "pairs.json", ("source", "target")
_LARGEST = 1 << 20  # largest pairs.json in bytes
_HASHED = 1 << 24  # numbers hashed at a time
Block = tuple[TokenSequences, TokenSequences]


class StoredPairs(NamedTuple):
    """Pairs of sequences whose tokens are mapped from files, and what was noted of them.

    Attributes:
        source, target: the tokens; starts and lengths, 16 bytes a text, are in memory.
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
    """Write tokens and lengths of both sides; returns the types, numbers and digests."""
    kinds: list[str] = ["|u1", "|u1"]
    with (
        (folder / "source.bin").open("wb") as one,
        (folder / "target.bin").open("wb") as other,
        (folder / "source.lengths").open("wb") as sizes,
        (folder / "target.lengths").open("wb") as other_sizes,
    ):
        for block in blocks:
            for side, (part, file, lengths) in enumerate(zip(block, (one, other), (sizes, other_sizes), strict=True)):
                kinds[side] = part.tokens.dtype.str
                file.write(np.ascontiguousarray(part.tokens).data)
                lengths.write(part.lengths.astype("<i4").data)
        for file in (one, other, sizes, other_sizes):
            _synced(file)
    digests = {side: _digest(*_files(folder, side, kind)) for side, kind in zip(_SIDES, kinds, strict=True)}
    return {"kinds": kinds, "digests": digests}


def _synced(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _files(folder: Path, side: str, kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The tokens, mapped, and the lengths of one side; a file of size 0 cannot be mapped."""
    path = folder / f"{side}.bin"
    for name in (path, folder / f"{side}.lengths"):
        os.close(open_regular(name))
    tokens = np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)
    return tokens, np.fromfile(folder / f"{side}.lengths", "<i4")


def _open(folder: Path, request: dict[str, Any]) -> StoredPairs | None:
    """The pairs in a folder; None if it is missing, damaged, or of another request."""
    try:
        meta = unsealed(parse_json(read_small(folder / _META, _LARGEST)))
        if meta["request"] != request:
            return None
        sides = []
        for side, kind in zip(_SIDES, meta["kinds"], strict=True):
            tokens, lengths = _files(folder, side, kind)
            if _digest(tokens, lengths) != meta["digests"][side] or int(lengths.sum(dtype=np.int64)) != len(tokens):
                return None
            sides.append(TokenSequences.of(tokens, lengths.astype(np.int64)))
        return StoredPairs(sides[0], sides[1], meta["notes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(tokens: NDArray[Any], lengths: NDArray[Any]) -> str:
    """The SHA-256 of one side; pages of the map are released as they are read."""
    digest = hashlib.sha256(lengths.data)
    mapped = getattr(tokens, "_mmap", None)
    for start in range(0, len(tokens), _HASHED):
        digest.update(np.ascontiguousarray(tokens[start : start + _HASHED]).data)
        if mapped is not None and hasattr(mapped, "madvise"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)
    return digest.hexdigest()
