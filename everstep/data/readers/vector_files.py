"""Files of word vectors: word2vec's text and binary formats, GloVe's text, fastText's .vec."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from everstep.data.text.text_files import expand, file_lines
from everstep.errors import DataError

VectorFormat = Literal["word2vec", "word2vec-binary", "glove", "vec"]
"""word2vec and vec: a line of the number of words and of numbers each, then a word and its numbers a line. glove: the
same without the first line. word2vec-binary: that line, then each word, a space, and its numbers as float32."""
_LONGEST = 1 << 12  # bytes of a word
_BOUND = 1 << 40  # numbers that a header may announce
_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)


@dataclass(frozen=True)
class VectorTable:
    """Words with vectors.

    Attributes:
        words: N distinct words.
        numbers: (N, D) float32.
        repeated: words that occurred again; their first vector is kept.
    """

    words: tuple[str, ...]
    numbers: NDArray[np.float32]
    repeated: int = 0


def read_vector_file(path: str, size: int | None = None, key: str = "model.embedding_size") -> VectorTable:
    """Read word vectors of any `VectorFormat`, which is found out; plain, `.gz` or `.xz`.

    Words may hold spaces where D is known, from `size` or from the first line. A word that occurs twice has its first
    vector.

    Args:
        path: the file.
        size: D; None: as the file has it.
        key: the setting that says D, for errors.

    Raises:
        DataError: a vector has another size, a number is none or not finite, or the file ends early; the message names
            the line, or the word.
    """
    file, *others = expand(path)
    if others:
        raise DataError(f"{path}: expected one file of word vectors; it matches {1 + len(others)}")
    rows = _binary(file, size, key) if _is_binary(file) else _text(file, size, key)
    words: dict[str, None] = {}
    numbers: list[NDArray[np.float32]] = []
    repeated = 0
    for place, word, vector in rows:
        if not np.isfinite(vector).all():
            raise DataError(f"{file}, {place}: the vector of {word[:40]!r} holds NaN or an infinity")
        if word in words:
            repeated += 1
            continue
        words[word] = None
        numbers.append(vector)
    if not numbers:
        raise DataError(f"{file}: no vector")
    return VectorTable(tuple(words), np.stack(numbers), repeated)


_Row = tuple[str, str, NDArray[np.float32]]


def _text(file: Path, size: int | None, key: str) -> Iterator[_Row]:
    announced = None
    count = 0
    for number, line in enumerate(file_lines(file), 1):
        fields = line.rstrip("\n ").split(" ")
        if len(fields) < 2:
            raise DataError(
                f"{file}, line {number}: expected a word and numbers, with a space between; got {line[:60]!r}"
            )
        if number == 1 and len(fields) == 2 and all(map(str.isdecimal, fields)):
            announced, found = int(fields[0]), int(fields[1])
            size = _checked_size(f"{file}, line 1", found, size, key)
            continue
        if size is None or (number == 1 and all(map(_is_number, fields[1:]))):
            size = _checked_size(f"{file}, line 1", len(fields) - 1, size, key)
        if size < 1:
            raise DataError(f"{file}, line 1: expected vectors of one number or more; got {size}")
        if len(fields) - 1 < size:
            if number == 1:
                _checked_size(f"{file}, line 1", len(fields) - 1, size, key)
            got = len(fields) - 1
            raise DataError(f"{file}, line {number}: expected vectors of {size} numbers, as before it; got {got}")
        word = " ".join(fields[:-size])
        try:
            with np.errstate(over="ignore"):  # an infinity, which is reported
                vector = np.array(fields[-size:], np.float32)
        except ValueError:
            raise DataError(f"{file}, line {number}: expected {size} numbers after the word {word[:40]!r}") from None
        count += 1
        yield f"line {number}", word, vector
    if announced is not None and count < announced:
        raise DataError(f"{file}: expected {announced:,} vectors, as its first line says; got {count:,}: it is cut off")


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _checked_size(where: str, found: int, size: int | None, key: str) -> int:
    if size is not None and found != size:
        raise DataError(f"{where}: expected vectors of {size} numbers ({key}), got {found}; set {key}={found}")
    return found


def _opened(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    return cast(BinaryIO, lzma.open(file, "rb")) if file.suffix == ".xz" else file.open("rb")


def _header(line: bytes) -> tuple[int, int] | None:
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or len(line) > 64:
        return None
    count, size = map(int, fields)
    return (count, size) if size > 0 and count * size < _BOUND else None


def _is_binary(file: Path) -> bool:
    """Whether a header is followed by what is no line of text with so many numbers."""
    try:
        with _opened(file) as stream:
            header = _header(stream.readline(_LONGEST))
            if header is None:
                return False
            piece = stream.read(min(1 << 16, _LONGEST + 64 * header[1]))
    except _UNREADABLE:
        return False  # reported when the file is read
    line = piece.split(b"\n")[0]
    try:
        _ = [float(field) for field in line.split(b" ")[-header[1] :]]
        line.decode()
    except (ValueError, UnicodeDecodeError):
        return _no_text(piece)
    return False


def _no_text(piece: bytes) -> bool:
    """Whether bytes are not UTF-8, but for a character that is cut, or hold control characters."""
    try:
        piece[: max(1, len(piece) - 4)].decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return any(byte < 9 for byte in piece)


def _binary(file: Path, size: int | None, key: str) -> Iterator[_Row]:
    try:
        with _opened(file) as stream:
            header = _header(stream.readline(_LONGEST))
            assert header is not None
            announced = header[0]
            size = _checked_size(f"{file}, its first line", header[1], size, key)
            for number in range(1, announced + 1):
                word = _word(stream)
                vector = stream.read(4 * size)
                if word is None or len(vector) < 4 * size:
                    raise DataError(
                        f"{file}: expected {announced:,} vectors, as its first line says; got {number - 1:,}: it is "
                        "cut off"
                    )
                try:
                    yield f"vector {number}", word.decode(), np.frombuffer(vector, "<f4").astype(np.float32)
                except UnicodeDecodeError:
                    raise DataError(f"{file}, vector {number}: expected a word in UTF-8; got {word[:40]!r}") from None
    except _UNREADABLE as error:
        raise DataError(f"{file}: cannot be read ({error})") from None


def _word(stream: BinaryIO) -> bytes | None:
    """The bytes up to the next space, without the line end of the vector before; None at the end."""
    found = bytearray()
    while len(found) < _LONGEST:
        byte = stream.read(1)
        if byte == b" ":
            return bytes(found)
        if not byte:
            return None
        if byte != b"\n" or found:
            found += byte
    return None


def vector_file(words: Sequence[str], numbers: NDArray[np.float32], form: str) -> Iterator[bytes]:
    """The content of a file of N words and their vectors (N, D), in pieces; read back, they have the same bits.

    Args:
        words: distinct words.
        numbers: their vectors.
        form: a `VectorFormat`.

    Raises:
        DataError: a word is empty, holds white space, or is there twice, which no such file can hold.
    """
    seen: set[str] = set()
    for word in words:
        if len(word.split()) != 1 or word.strip() != word or word in seen:
            why = "is there twice" if word in seen else "is empty or holds white space"
            raise DataError(f"the word {word!r} {why}, which files of word vectors cannot hold")
        seen.add(word)
    if form != "glove":
        yield f"{len(words)} {numbers.shape[1]}\n".encode()
    for word, row in zip(words, numbers, strict=True):
        if form == "word2vec-binary":
            yield word.encode() + b" " + row.astype("<f4").tobytes() + b"\n"
        else:
            yield f"{word} {' '.join(f'{value:.9g}' for value in row.tolist())}\n".encode()
