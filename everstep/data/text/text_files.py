"""Text files, plain or compressed, read in blocks that end at line ends, in bounded memory; see also `decoding`."""

from __future__ import annotations

import difflib
import glob
import gzip
import io
import lzma
import os
import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from everstep.data.text.decoding import MARK, decode, reads_text
from everstep.data.text.remote_files import fetched, is_url
from everstep.errors import DataError, counted
from everstep.storage.reading import open_regular

BLOCK_CHARS = 4 << 20
Span = tuple[int, int | None]
"""A range of characters (first, end); None is the end of the text."""
WHOLE: Span = (0, None)
_CHUNK_BYTES = 1 << 20
_BREAK = re.compile(r"\n|(?= )")
_FRAME_BYTES = 1 << 10
_NOTHING = {b"", BOM_UTF8, BOM_UTF16_LE, BOM_UTF16_BE, BOM_UTF32_LE, BOM_UTF32_BE}
_SCHEME = "everstep:"
_DEFAULT_DATA = "../shared/data"


class Block(NamedTuple):
    """A piece of a text file. The blocks of a file, joined, are its text.

    Attributes:
        text: the characters; ends with `\\n` unless the file's last line lacks one or the block was cut inside a line.
        path: the file.
        line: number of the line, from 1, in which the block starts.
        starts_inside: whether the block starts inside a line.
        ends_inside: whether the block ends inside a line.
        consumed: bytes of the stored file read so far.
    """

    text: str
    path: Path
    line: int
    starts_inside: bool
    ends_inside: bool
    consumed: int


def expand(patterns: str | Sequence[str], folders: bool = False) -> list[Path]:
    """The files that names and globs match: in the given order, matches of a glob sorted, each file once.

    `~` and environment variables are expanded; an unset EVERSTEP_DATA means `../shared/data`. `everstep:NAME` is a text
    bundled with the package, such as `everstep:shakespeare`. A URL, such as `s3://bucket/*.txt`, is read by fsspec and
    copied into the cache. A string is one pattern. With `folders`, a name may be that of a folder, which is returned as
    it is. A glob skips empty files, such as the `__init__.py` of a source tree;
    `empty_matches` returns them.

    Raises:
        DataError: nothing matches (the message lists the nearest names), a match is unreadable, a named file is a
            folder or empty, or a glob matches only empty files.

    Example:
        >>> [path.name for path in expand("everstep:shakespeare")]
        ['shakespeare.txt.xz']
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise DataError("no data file was named: give at least one file name or pattern")
    found = [path for pattern in wanted for path in _matches(pattern)[0]]
    for path in found:
        if not (folders and path.is_dir()):
            _check_file(path)
    return list(dict.fromkeys(found))


def empty_matches(patterns: str | Sequence[str]) -> list[Path]:
    """The files without text that globs match and `expand` skips; raises as `expand`."""
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    return list(dict.fromkeys(path for pattern in wanted for path in _matches(pattern)[1]))


def _matches(pattern: str) -> tuple[list[Path], list[Path]]:
    """The files that a name or glob matches: those with text, and those without."""
    if pattern.startswith(_SCHEME):
        return [_bundled(pattern)], []
    name = filled_in(pattern)
    if is_url(pattern):
        matches = fetched(pattern)
    elif os.path.lexists(name):
        return [Path(name)], []
    else:
        matches = [path for path in map(Path, sorted(glob.glob(name, recursive=True))) if not path.is_dir()]
    if not matches:
        raise DataError(_no_match(pattern, Path(name)))
    empty = [path for path in matches if _is_empty(path)]
    if len(empty) == len(matches):
        raise DataError(f"{pattern}: matches {counted(len(matches), 'empty file')} and no other")
    return [path for path in matches if path not in set(empty)], empty


def filled_in(name: str) -> str:
    """A name with `~` and environment variables expanded."""
    if "EVERSTEP_DATA" not in os.environ:
        name = name.replace("${EVERSTEP_DATA}", _DEFAULT_DATA).replace("$EVERSTEP_DATA", _DEFAULT_DATA)
    return os.path.expanduser(os.path.expandvars(name))


def _is_empty(path: Path) -> bool:
    """Whether a file holds no text: it is empty, an empty archive, or a byte-order mark."""
    try:
        if not path.is_file() or path.stat().st_size > _FRAME_BYTES:
            return False
        with path.open("rb") as raw:
            return _decompress(raw, path).read(len(BOM_UTF32_LE) + 1) in _NOTHING
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False  # reported when the file is read


def _bundled(pattern: str) -> Path:
    folder = Path(str(files("everstep.data"))) / "bundled"
    known = {_SCHEME + path.with_suffix("").stem: path for path in sorted(folder.glob("*.xz"))}
    if pattern not in known:
        raise DataError(f"{pattern}: no such bundled text; there is {', '.join(known)}")
    return known[pattern]


def _no_match(pattern: str, path: Path) -> str:
    told = pattern if str(path) == pattern else f"{pattern} (that is, {path})"
    if "$" in str(path):
        return f"{told}: no file matches; is that environment variable set?"
    if not path.parent.is_dir():
        return f"{told}: no file matches; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3, cutoff=0.5)
    hint = f"; the nearest names there: {', '.join(near)}" if near else ""
    return f"{told}: no file matches in folder {path.parent}{hint}"


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: expected a text file, got a folder; name its files, for example {path}/*.txt")
    try:
        size = path.stat().st_size
        os.close(open_regular(path))  # a file is read more than once, which a pipe does not allow
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not size:
        raise DataError(f"{path}: the file is empty")


def open_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> TextIO:
    """Open a file as text, decompressed by its suffix (`.gz`, `.xz`; anything else is plain).

    The caller closes it. For text of any size and helpful errors on invalid bytes use `read_blocks`.

    Raises:
        DataError: the file cannot be opened, or `encoding` is unknown.

    Example:
        >>> with open_text(expand("everstep:shakespeare")[0]) as lines:
        ...     next(lines)
        'First Citizen:\\n'
    """
    path = Path(path)
    if not reads_text(encoding):
        raise DataError(f"open_text: expected an encoding that Python reads, such as utf-8, but is {encoding!r}")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    stream = _Decompressed(raw, path)
    mark = MARK.encode(encoding, "ignore")  # for encodings that have a mark but do not remove it
    try:
        with _reading(path):
            if mark and stream.peek(len(mark)).startswith(mark):
                stream.read(len(mark))
    except DataError:
        stream.close()
        raise
    return io.TextIOWrapper(stream, encoding=encoding)


class _Decompressed(io.BufferedReader):
    """A decompressing stream that also closes the underlying file."""

    def __init__(self, raw: BinaryIO, path: Path):
        super().__init__(cast(io.RawIOBase, _decompress(raw, path)))
        self._below = raw

    def close(self) -> None:
        super().close()
        self._below.close()


def _decompress(raw: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    return raw


def read_blocks(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    encoding: str = "utf-8",
    block_chars: int = BLOCK_CHARS,
    span: Span = WHOLE,
) -> Iterator[str]:
    """The text of files in blocks of about `block_chars` characters, cut after line ends.

    Only the characters of the concatenated text within `span` are returned. A line longer than `block_chars` is cut
    before its last space, or after `block_chars` characters if it has none, so that memory is bounded.

    Raises:
        DataError: a file cannot be read, is binary, empty, damaged, or in another encoding.

    Example:
        >>> sum(len(block) for block in read_blocks(expand("everstep:shakespeare")))
        1115394
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    for block in spanned([Path(path) for path in listed], encoding, block_chars, span):
        yield block.text


def spanned(
    paths: Sequence[Path], encoding: str = "utf-8", block_chars: int = BLOCK_CHARS, span: Span = WHOLE
) -> Iterator[Block]:
    """The blocks of several files within `span` of the concatenated text; `consumed` counts over all files."""
    first, last = span
    seen = before = 0
    for path in paths:
        for block in file_blocks(path, encoding, block_chars):
            size = len(block.text)
            start, stop = max(first - seen, 0), size if last is None else min(last - seen, size)
            seen += size
            if stop < 0:
                return
            if start < stop:
                yield _within(block, start, stop)._replace(consumed=before + block.consumed)
        before += path.stat().st_size


def _within(block: Block, start: int, stop: int) -> Block:
    """The characters `start` to `stop` (exclusive) of a block."""
    text = block.text
    return block._replace(
        text=text[start:stop],
        line=block.line + text.count("\n", 0, start),
        starts_inside=text[start - 1] != "\n" if start else block.starts_inside,
        ends_inside=text[stop - 1] != "\n" if stop < len(text) else block.ends_inside,
    )


def line_end_at(paths: Sequence[Path], share: float, encoding: str = "utf-8", most: int | None = None) -> int:
    """The number of characters in the first `share` (0 … 1) of the files' text, up to the next line end.

    At most `most` characters remain after it. With a share below 1 something remains, if there are at least two
    characters: if only the last line ends there, the position is its start; if then more than half of the text (or more
    than `most`) would remain, the line is cut.

    Example:
        >>> line_end_at(expand("everstep:shakespeare"), 0.9)
        1003856
    """
    total = sum(map(len, read_blocks(paths, encoding)))
    target = max(int(total * share), 0 if most is None else total - most)
    seen = before = 0
    for block in read_blocks(paths, encoding):
        end = block.find("\n", max(target - seen - 1, 0)) + 1
        if end and seen + len(block) >= target and (share == 1 or seen + end < total):
            return seen + end
        inner = block.rfind("\n", 0, max(min(total - 1 - seen, len(block)), 0)) + 1
        before = seen + inner if inner else before
        seen += len(block)
    left = total - before
    return before if before and 2 * left <= total and left <= (most or left) and share < 1 else target


def file_blocks(path: Path, encoding: str = "utf-8", block_chars: int = BLOCK_CHARS) -> Iterator[Block]:
    """The blocks of one file with their positions; see `read_blocks`."""
    line, inside, consumed = 1, False, 0
    parts: list[str] = []
    size = 0
    for text, consumed in decoded(path, encoding):
        parts.append(text)
        size += len(text)
        while size > block_chars:
            text = "".join(parts)
            cut = _cut(text, block_chars)
            block = text[:cut]
            ends_inside = not block.endswith("\n")
            yield Block(block, path, line, inside, ends_inside, consumed)
            line, inside = line + block.count("\n"), ends_inside
            parts, size = [text[cut:]], size - cut
    rest = "".join(parts)
    if rest:
        yield Block(rest, path, line, inside, False, consumed)
    elif line == 1 and not inside:
        raise DataError(f"{path}: the file holds no text")


def file_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The whole lines of one file, including `\\n`; raises as `read_blocks`."""
    begun: list[str] = []
    for block in file_blocks(path, encoding):
        for line in io.StringIO(block.text):
            if line.endswith("\n"):
                yield "".join([*begun, line]) if begun else line
                begun = []
            else:
                begun.append(line)
    if begun:
        yield "".join(begun)


def _cut(text: str, limit: int) -> int:
    """The index at which to cut a text longer than `limit`: after a line, else before a space, else at the limit."""
    return text.rfind("\n", 0, limit) + 1 or max(text.rfind(" ", 0, limit), 0) or limit


def pieces(text: str, limit: int) -> Iterator[str]:
    """A text in pieces of about `limit` characters, cut only after a line or before a space."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1 or text.rfind(" ", start + 1, start + limit)
        if end < 0:
            later = _BREAK.search(text, start + limit)
            end = later.end() if later else len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def decoded(path: Path, encoding: str) -> Iterator[tuple[str, int]]:
    """Pieces of the file's text with normalised newlines, each with the number of stored bytes read so far."""
    return decode(_chunks(path), str(path), encoding)


def read_start(path: Path, size: int) -> bytes:
    """The first `size` bytes of a file of any kind, decompressed by its suffix; fewer if there are no more.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    with _reading(path), path.open("rb") as raw:
        return _decompress(raw, path).read(size)


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Chunks of the decompressed file, the last one empty, each with the number of stored bytes read so far."""
    with _reading(path), path.open("rb") as raw:
        stream = _decompress(raw, path)
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            yield chunk, raw.tell()
            if not chunk:
                return


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: damaged or incomplete {path.suffix} file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
