"""Token files: text is tokenised once, in parallel, into a folder that later runs map into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everstep.data.text.text_files import WHOLE, Span, expand
from everstep.data.text.tokenise import SEQUENCES, Layout, TokenisedBlock, tokenised
from everstep.data.text.tokenizer import Tokenizer
from everstep.errors import DataError, counted
from everstep.storage.cache_folder import cache_explained, cache_folder, discard, made_aside, publish
from everstep.storage.reading import open_regular, parse_json, read_small, sealed, unsealed
from everstep.storage.scratch import release

_FORMAT = 1
_TOKENS, _STARTS, _META = "tokens.bin", "starts.npy", "corpus.json"
_RELEASE_BYTES = 256 << 20
_HASHED_BYTES = 64 << 20  # bytes hashed at a time
_LARGEST = 1 << 28  # largest corpus.json in bytes; it lists every file
_NEAR_BYTES = 1 << 16  # bytes that one read brings into memory around itself
Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Corpus:
    """A tokenised text.

    Attributes:
        tokens: (N,) ids, unsigned integers; usually a read-only memory map.
        starts: (documents or lines,) int64, the start of each in `tokens`; `[0]` for one stream.
        chars, bytes, words: size of the normalised text; see `Tokenizer.count`.
        unknown: number of `<unk>` tokens.
        skipped: number of skipped blank lines (lines mode) or blank files (one document per file).
        digest: SHA-256 (hex) of tokens and starts; a resumed run compares it.
        path: the folder in the cache, or None.

    Example:
        >>> corpus = Corpus(np.array([3, 1, 2], np.uint8), np.array([0]))
        >>> len(corpus), corpus.unknown
        (3, 0)
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    chars: int = 0
    bytes: int = 0
    words: int = 0
    unknown: int = 0
    skipped: int = 0
    digest: str = ""
    path: Path | None = field(default=None, repr=False)
    _touched: int = field(default=0, init=False, repr=False)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def take(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens at `places` (rows, steps), in the same shape.

        Mapped pages are released from time to time, so that an epoch does not fill memory with the file.
        """
        found = self.tokens[places].astype(np.int64)
        self._touched += len(places) * _NEAR_BYTES + found.size
        if self._touched > _RELEASE_BYTES:
            release(self.tokens)
            self._touched = 0
        return found

    def summary(self) -> str:
        """A one-line summary."""
        parts = f"in {len(self.starts):,} parts" if len(self.starts) > 1 else "in one stream"
        share = 100 * self.unknown / max(len(self), 1)
        return (
            f"{counted(len(self), 'token')} {parts}; {counted(self.chars, 'character')}, "
            f"{counted(self.bytes, 'byte')}, {counted(self.words, 'word')}; {self.unknown:,} unknown ({share:.2f} %), "
            f"{counted(self.skipped, 'blank part')} skipped"
        )


def prepare(
    paths: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    encoding: str = "utf-8",
    sequence: Literal["stream", "documents", "lines"] = "stream",
    document_separator: Literal["blank-line", "file"] = "blank-line",
    span: Span = WHOLE,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Corpus:
    """Tokenise text files, or reuse an earlier result from the cache.

    Args:
        paths: names and patterns, as for `expand`.
        tokenizer: encodes the text.
        encoding: encoding of the files.
        sequence: `stream`: all files concatenated into one sequence; `documents`: documents separated by blank lines
            (which are dropped), or one per file; `lines`: one sequence per line, blank lines dropped.
        document_separator: what separates documents: blank lines or files.
        span: range of characters of the concatenated text to use: (first, end).
        cache: folder of token files; by default the cache folder.
        progress: called with bytes read and total bytes (of the files as stored).
        workers: number of processes; by default one per core. With 1, or below 8 MB of source, no process is started.

    A cached token file is reused while every source has the same size and modification time, or else the same SHA-256.
    It is written to a temporary folder and renamed, so that a crash leaves nothing partial and two processes may
    prepare the same corpus at once.

    Raises:
        DataError: a source cannot be used, the tokenizer lacks a symbol, there are no tokens, or the cache cannot be
            written.

    Example:
        >>> import tempfile
        >>> from everstep.data.text.text_files import read_blocks
        >>> tokenizer = Tokenizer.train(read_blocks(expand("everstep:shakespeare")), "chars")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(prepare("everstep:shakespeare", tokenizer, cache=Path(folder)))
        1115394
    """
    layout = _layout(sequence, document_separator, tokenizer)
    files = expand(str(paths) if isinstance(paths, str | Path) else [str(path) for path in paths])
    request = _request(files, tokenizer, encoding, layout, span)
    folder = (cache_folder() if cache is None else Path(cache)) / _key(request)
    sources = [_stamp(path) for path in files]
    found = _reuse(folder, request, files, sources)
    if found is not None:
        return found
    with cache_explained(folder.parent):
        aside = made_aside(folder)
        try:
            with contextlib.closing(tokenised(files, tokenizer, encoding, layout, workers, span)) as parts:
                meta = _write(aside, parts, tokenizer, progress, sum(source["size"] for source in sources))
            _check_unchanged(files, sources)
            _save_json(aside / _META, {"request": request, "sources": _hashed(files, sources), **meta})
            return _published(aside, folder, request, files, sources)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _layout(sequence: str, separator: str, tokenizer: Tokenizer) -> Layout:
    if sequence not in SEQUENCES:
        raise DataError(f"data.sequence={sequence!r}: expected one of {', '.join(SEQUENCES)}")
    if separator not in ("blank-line", "file"):
        raise DataError(f"data.document_separator={separator!r}: expected blank-line or file")
    if sequence == "lines" and tokenizer.eos_id is None:
        raise DataError("data.sequence=lines: the tokenizer has no <eos> to end a line with; set data.eos=true")
    if sequence == "documents":
        return "files" if separator == "file" else "paragraphs"
    return "lines" if sequence == "lines" else "stream"


def _request(files: list[Path], tokenizer: Tokenizer, encoding: str, layout: Layout, span: Span) -> dict[str, Any]:
    """Everything that determines the tokens, except the content of the files."""
    return {
        "format": _FORMAT,
        "tokenizer": tokenizer.digest,
        "encoding": encoding,
        "sequence": layout,
        "span": list(span),
        "paths": [str(path.resolve()) for path in files],
    }


def _key(request: dict[str, Any]) -> str:
    """The name of the cache folder for a request."""
    return hashlib.sha256(json.dumps(request, allow_nan=False).encode()).hexdigest()[:32]


def _stamp(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashed(files: list[Path], sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources, with the SHA-256 of their files added."""
    return [{**source, "sha256": _sha256(path)} for path, source in zip(files, sources, strict=True)]


def _check_unchanged(files: list[Path], sources: list[dict[str, Any]]) -> None:
    for path, source in zip(files, sources, strict=True):
        if _stamp(path) != source:
            raise DataError(f"{path}: changed while it was being read; run again when it is complete")


def _reuse(folder: Path, request: dict[str, Any], files: list[Path], sources: list[dict[str, Any]]) -> Corpus | None:
    """The corpus in `folder`, if it is intact and made from the current files."""
    corpus = _open(folder, request)
    if corpus is None:
        return None
    meta = _read_json(folder / _META)
    if meta["sources"] == [
        {**source, "sha256": old["sha256"]} for source, old in zip(sources, meta["sources"], strict=True)
    ]:
        return corpus
    hashes = _hashed(files, sources)
    if [new["sha256"] for new in hashes] != [old["sha256"] for old in meta["sources"]]:
        return None
    with contextlib.suppress(OSError):  # the update only saves the next run the hashing
        _save_json(folder / _META, {**meta, "sources": hashes})
    return corpus


def _open(folder: Path, request: dict[str, Any]) -> Corpus | None:
    """The corpus in `folder`, or None if it is missing, damaged or of another request.

    Each time a corpus is opened, it is verified by its SHA-256, at one or two seconds per gigabyte. Size and
    modification time would not reveal a bit lost by a disk or a copy.
    """
    try:
        meta = _read_json(folder / _META)
        if meta["request"] != request:
            return None
        for name in (_TOKENS, _STARTS):
            os.close(open_regular(folder / name))
        tokens = np.memmap(folder / _TOKENS, meta["dtype"], "r")
        starts = _mapped(folder / _STARTS)
        if starts.dtype != np.int64 or (tokens.shape, starts.shape) != ((meta["tokens"],), (meta["starts"],)):
            return None
        if _digest(tokens, starts) != meta["digest"]:
            return None
        return Corpus(tokens, starts, **meta["counts"], digest=meta["digest"], path=folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except Exception as error:  # any: Python's parser reads the header
        raise ValueError(f"{path} is damaged ({error})") from error


def _digest(tokens: NDArray[Any], starts: NDArray[np.int64]) -> str:
    """The SHA-256 of a corpus; a memory map is read in pieces, which are released."""
    digest = hashlib.sha256()
    for array in (tokens, starts):
        rows = _HASHED_BYTES // array.itemsize
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).data)
            release(array)
    return digest.hexdigest()


def _write(
    folder: Path, parts: Iterator[TokenisedBlock], tokenizer: Tokenizer, progress: Progress | None, total: int
) -> dict[str, Any]:
    """Write tokens and starts of all parts in order; return the remaining entries of `corpus.json`."""
    digest = hashlib.sha256()
    size = skipped = unknown = 0
    counts = np.zeros(3, np.int64)
    starts = []
    with (folder / _TOKENS).open("wb") as file:
        for part in parts:
            data = np.ascontiguousarray(part.tokens)
            file.write(data.data)
            digest.update(data.data)
            starts.append(part.starts + size)
            size += len(data)
            counts += part.counts
            skipped += part.skipped
            unknown += 0 if tokenizer.unk_id is None else int(np.count_nonzero(data == tokenizer.unk_id))
            if progress is not None:
                progress(part.consumed, total)
        file.flush()
        os.fsync(file.fileno())
    if not size:
        raise DataError("the files hold no text: there is none, or every line is blank")
    joined = np.concatenate(starts)
    np.save(folder / _STARTS, joined, allow_pickle=False)
    digest.update(joined.data)
    named = dict(zip(("chars", "bytes", "words"), counts.tolist(), strict=True))
    return {
        "dtype": np.dtype(tokenizer.dtype).str,
        "tokens": size,
        "starts": len(joined),
        "counts": {**named, "unknown": unknown, "skipped": skipped},
        "digest": digest.hexdigest(),
    }


def _save_json(path: Path, value: dict[str, Any]) -> None:
    """Write `corpus.json` atomically, with the SHA-256 of its content."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(sealed(value), indent=1, allow_nan=False), "utf-8", newline="\n")
    os.replace(aside, path)


def _read_json(path: Path) -> dict[str, Any]:
    """Read and verify `corpus.json`.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    return unsealed(parse_json(read_small(path, _LARGEST)))


def _published(
    aside: Path, folder: Path, request: dict[str, Any], files: list[Path], sources: list[dict[str, Any]]
) -> Corpus:
    """The corpus written to `aside`, or an equal one that another process published first."""
    for _ in range(10):
        publish(aside, folder)
        if (found := _reuse(folder, request, files, sources)) is not None:
            return found
        discard(folder)
    raise DataError(
        f"{folder}: cannot be read back, or other runs keep replacing it; set EVERSTEP_CACHE to another one"
    )
