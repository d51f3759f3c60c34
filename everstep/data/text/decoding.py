"""Decoding of bytes, the same for every reader of text.

Newlines are universal: `\\r\\n` and a lone `\\r` become `\\n`, and nothing else ends a line. A byte-order mark at the
start is dropped. Decoding is strict: an invalid byte is an error that gives its position and, if it can be guessed, the
actual encoding.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator

from everstep.errors import DataError

MARK = "\ufeff"
_NEWLINE = re.compile("\r\n?")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8"),
)
_SNIFFED = 1 << 16


class NotText(DataError):
    """A byte that is invalid in the given encoding.

    Attributes:
        place: the value of the byte, as `(0xe9)`.
        remedy: advice for the user.
    """

    def __init__(self, message: str, place: str = "", remedy: str = ""):
        super().__init__(message)
        self.place, self.remedy = place, remedy


def reads_text(encoding: str) -> bool:
    """Whether Python can decode text incrementally in `encoding`, in pieces cut anywhere; `idna`, for one, cannot."""
    sample = f"{'a' * 100} 1.\n"
    try:
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        read = [decoder.decode(bytes([byte])) for byte in sample.encode(encoding)]
        return "".join([*read, decoder.decode(b"", final=True)]) == sample
    except (LookupError, ValueError):  # ValueError: an error of the encoding, or a name with a NUL in it
        return False


def as_read(text: str, head: bool = True) -> str:
    """Normalise a text as if it had been read from a file; at the `head`, a byte-order mark is dropped.

    Example:
        >>> as_read("\\ufeffone\\r\\ntwo\\rthree")
        'one\\ntwo\\nthree'
    """
    return _NEWLINE.sub("\n", text.removeprefix(MARK) if head else text)


def decode(
    chunks: Iterable[tuple[bytes, int]], source: str, encoding: str = "utf-8", option: str = "data.encoding="
) -> Iterator[tuple[str, int]]:
    """Decode chunks of bytes, the last of which is empty. Text before an invalid byte is yielded before the error.

    Args:
        chunks: bytes, each with a number that is passed through.
        source: name of the source, for errors.
        encoding: Python's name of the encoding.
        option: the option that sets the encoding, for errors.

    Raises:
        DataError: the encoding is unknown, or not a text encoding (base64, idna, …).
        NotText: a byte is invalid in the encoding, or the content is binary.
    """
    if not reads_text(encoding):
        raise DataError(
            f"{option}{encoding!r}: expected an encoding that Python reads, such as utf-8, utf-16, latin-1 or cp1252"
        )
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, line, head, first = 0, 1, b"", True
    for chunk, passed in chunks:
        state = decoder.getstate()
        held = len(state[0])
        problem = None
        if not head:
            head = chunk
            _check_mark(head, source, encoding, option)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            problem = error
            decoder.setstate(state)
            start = error.start if isinstance(error, UnicodeDecodeError) else 0
            text = decoder.decode(chunk[: max(start - held, 0)])
        if first and ("\0" in text or (problem and b"\0" in head and not _wide(encoding))):
            raise NotText(_binary(head, source, encoding, option))
        text = newlines.decode(text, final=not chunk or problem is not None)
        if first and text:
            text, first = text.removeprefix(MARK), False
        line += text.count("\n")
        if text:
            yield text, passed
        if problem is not None:
            raise _not_text(problem, source, encoding, option, (offset - held, line, chunk)) from None
        offset += len(chunk)


def read_lines(
    chunks: Iterable[bytes], source: str, encoding: str = "utf-8", option: str = "data.encoding="
) -> Iterator[str]:
    """The lines of chunks of bytes, without line ends, each as soon as it is complete.

    Raises:
        DataError: as `decode`; the message names the line and the byte.
    """
    number, parts = 1, [""]
    try:
        for text, _ in decode(_ended(chunks), source, encoding, option):
            *whole, last = text.split("\n")
            for line in whole:
                yield "".join([*parts, line])
                number, parts = number + 1, []
            parts.append(last)
    except NotText as error:
        if not error.place:
            raise
        byte = len("".join(parts).encode(encoding)) + 1
        shown = encoding.upper() if encoding.lower() == "utf-8" else encoding
        raise DataError(
            f"{source}, line {number}: expected {shown}; byte {byte} of it {error.place} is not. {error.remedy}"
        ) from None
    if any(parts):
        yield "".join(parts)


def _ended(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    for chunk in chunks:
        if chunk:
            yield chunk, 0
    yield b"", 0


def _wide(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def _check_mark(head: bytes, source: str, encoding: str, option: str) -> None:
    """Require the byte-order mark that "utf-16" and "utf-32" imply; without it, ASCII would decode to other letters."""
    if len(head) >= 4 and _wide(encoding) and "-" not in codecs.lookup(encoding).name[4:]:
        mark = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        if mark != codecs.lookup(encoding).name:
            found = mark or sniffed(head)
            hint = f"; it looks like {found}: set {option}{found}" if found else f"; try {option}{encoding}-le"
            raise NotText(f"{source}: is not {encoding} text, which begins with a byte-order mark{hint}")


def _binary(head: bytes, source: str, encoding: str, option: str) -> str:
    found = sniffed(head)
    if found and found != codecs.lookup(encoding).name:
        return f"{source}: is {found} text, as its bytes show, not {encoding}; set {option}{found}"
    return (
        f"{source}: looks binary (it holds NUL bytes); expected a text file. If it is text, take them out: "
        "tr -d '\\000' < OLD > NEW"
    )


def _not_text(error: UnicodeError, source: str, encoding: str, option: str, at: tuple[int, int, bytes]) -> NotText:
    """The error for an invalid byte. `at`: offset of the decoder's buffer, line number, and the bytes around it."""
    begins, line, chunk = at
    found = sniffed(chunk)
    if found == codecs.lookup(encoding).name:
        found = None
    if found not in (None, "cp1252", "latin-1"):
        remedy = f"It looks like {found}: set {option}{found}."
    else:
        guess = found or "latin-1"
        other = f"{option}latin-1, or " if guess != "latin-1" else ""
        remedy = f"Set {option}{guess} (or {other}the right one), or convert it: iconv -f {guess} -t utf-8."
    if not isinstance(error, UnicodeDecodeError):
        return NotText(f"{source}: is not {encoding} text ({error}). {remedy}")
    before = error.object[: error.start]
    if encoding.lower() == "utf-8" and not before.isascii():
        remedy = f"The text before it is UTF-8, so that place may be damaged. {remedy}"
    place = f"(0x{error.object[error.start]:02x})"
    return NotText(
        f"{source}: byte {begins + error.start} {place}, in line {line}, is not {encoding} text ({error.reason}). "
        f"{remedy}",
        place,
        remedy,
    )


def sniffed(head: bytes) -> str | None:
    """Guess the encoding of bytes by their mark, by the positions of NULs, or by trial decoding; None if unknown.

    Example:
        >>> sniffed("plain".encode("utf-16-le")), sniffed("“curly” é".encode("cp1252")), sniffed("東京".encode())
        ('utf-16-le', 'cp1252', 'utf-8')
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    head = head[:_SNIFFED]
    if b"\0" in head:
        wide = _wide_by_nuls(head)
        return wide if wide and _decodes(head, wide) else None
    return next((name for name in ("utf-8", "cp1252", "latin-1") if _decodes(head, name)), None)


def _wide_by_nuls(head: bytes) -> str | None:
    """UTF-16 or UTF-32 of alphabetic scripts: few distinct high bytes, NUL among them (at least those of spaces)."""
    places = [head[place::4] for place in range(4)]
    nuls = [part.count(0) / max(len(part), 1) for part in places]
    if min(nuls[2], nuls[3]) > 0.9 and nuls[0] < 0.1:
        return "utf-32-le"
    if min(nuls[0], nuls[1]) > 0.9 and nuls[3] < 0.1:
        return "utf-32-be"
    even, odd = head[0::2], head[1::2]
    for high, low, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if high.count(0) > len(high) / 100 and not low.count(0) and 2 * len(set(high)) <= len(set(low)):
            return name
    return None


def _decodes(head: bytes, encoding: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(head)  # may end inside a character
    except UnicodeError:
        return False
    return not re.search("[\0-\x08\x0e-\x1a\x7f]", text)
