"""Recordings as numbers: WAV files by what RIFF says, all other formats by soundfile."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.errors import ConfigError, DataError
from everstep.storage.reading import read_small, reason

Samples = NDArray[np.float32]
LARGEST = 1 << 31
"""Most bytes of a file."""
REMEDY = "files other than WAV need soundfile: pip install 'everstep[speech]'"
FARTHEST_UP, FASTEST = 16, 1_000_000
"""A rate is raised at most so many times; the most samples a second of a recording that is resampled."""
INLINE = "data:audio/"
"""How a recording begins that stands in a line itself, in base64."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN = (0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF)  # sizes that programs write before they know them


class Recording(NamedTuple):
    """A recording.

    Attributes:
        samples: (n, channels) float32, in −1 … 1.
        rate: samples a second.
    """

    samples: Samples
    rate: int

    def mono(self, rate: int, where: str = "the recording") -> Samples:
        """The mean of the channels at `rate` samples a second, (m,); other rates go through a polyphase filter.

        Raises:
            DataError: the rate of the file is so far from `rate` that its header is damaged; `where` names the file.
        """
        found: Samples = self.samples.mean(1, dtype=np.float32)
        if rate == self.rate or not len(found):
            return found
        if not rate / FARTHEST_UP <= self.rate <= FASTEST:  # a few bytes would become hours, or a filter of gigabytes
            raise DataError(
                f"{where}: expected from {-(-rate // FARTHEST_UP):,} to {FASTEST:,} samples a second, to resample it "
                f"to {rate:,} (data.sample_rate); its header says {self.rate:,}"
            )
        from scipy.signal import resample_poly

        common = gcd(rate, self.rate)
        resampled: Samples = resample_poly(found, rate // common, self.rate // common).astype(np.float32)
        return resampled


def read_recording(given: str | Path, where: str = "") -> Recording:
    """Read a file, or a `data:audio/wav;base64,…` that holds the recording itself.

    Args:
        given: the path, or the recording.
        where: what messages call it; "": its path.

    Raises:
        DataError: it is missing, damaged, holds no audio, or numbers that are not finite.
        ConfigError: it needs soundfile, which is missing.
    """
    inline = isinstance(given, str) and given.startswith(INLINE)
    where = where or ("the recording" if inline else str(given))
    content = _decoded(str(given), where) if inline else _read(Path(given), where)
    found = read_wav(content, where) if content[:4] in (b"RIFF", b"RIFX", b"RF64") else _by_soundfile(content, where)
    if not np.isfinite(found.samples).all():
        raise DataError(f"{where}: holds numbers that are not finite; expected samples between -1 and 1")
    return found


def _decoded(given: str, where: str) -> bytes:
    head, _, text = given.partition(",")
    if not head.endswith(";base64"):
        raise DataError(f"{where}: expected data:audio/wav;base64,… ; it begins with {given[:40]!r}")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: is no base64 ({error})") from None


def _read(path: Path, where: str) -> bytes:
    try:
        content = read_small(path, LARGEST)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({reason(error)})") from None
    if not content:
        raise DataError(f"{where}: the file is empty; expected a recording")
    return content


def read_wav(content: bytes, where: str) -> Recording:
    """A WAV file: whole numbers of 8, 16, 24 or 32 bits, or floats of 32 or 64.

    The chunk of samples ends where the file does if its size is one that programs write before they know it (0,
    0xFFFFFFFF), or promises more than there is, as that of an interrupted recording.

    Raises:
        DataError: it is damaged, or of another encoding.
        ConfigError: it is of another encoding, which soundfile may read, and soundfile is missing.
    """
    if content[:4] != b"RIFF":
        return _by_soundfile(content, where)
    form: tuple[int, ...] | None = None
    for name, body in _chunks(content):
        if name == b"fmt ":
            if len(body) < 16:
                raise DataError(f"{where}: a damaged WAV file: its format has {len(body)} bytes; expected 16")
            form = struct.unpack_from("<HHIIHH", body)
            if form[0] == _EXTENSIBLE and len(body) >= 26:
                form = (struct.unpack_from("<H", body, 24)[0], *form[1:])
        elif name == b"data" and form is not None:
            kind, channels, rate, _, _, bits = form
            if not channels or not rate:
                raise DataError(f"{where}: a damaged WAV file: it has {channels} channels, {rate} samples a second")
            return Recording(_samples(body, kind, channels, bits, content, where), rate)
    raise DataError(f"{where}: a damaged WAV file: expected a format and samples; it ends too early")


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The name and the body of each chunk."""
    view, start = memoryview(content), 12
    while start + 8 <= len(content):
        name, size = content[start : start + 4], struct.unpack_from("<I", content, start + 4)[0]
        start += 8
        if name == b"data" and size in _UNKNOWN:
            size = len(content) - start
        yield name, view[start : start + size]
        start += size + size % 2


def _samples(body: memoryview, kind: int, channels: int, bits: int, content: bytes, where: str) -> Samples:
    """Samples (n, channels); what is left of a last incomplete one is not read."""
    width = bits // 8
    if kind not in (_PCM, _FLOAT) or bits not in ((8, 16, 24, 32) if kind == _PCM else (32, 64)):
        return _by_soundfile(content, f"{where} (WAV encoding {kind}, {bits} bits)").samples
    body = body[: len(body) // (width * channels) * width * channels]
    found: NDArray[Any]
    if kind == _FLOAT:
        found = np.frombuffer(body, f"<f{width}")
    elif bits == 8:
        found = np.frombuffer(body, np.uint8) / 128 - 1
    elif bits == 24:
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        found = wide.view("<i4")[:, 0] / 2**31
    else:
        found = np.frombuffer(body, f"<i{width}") / 2 ** (bits - 1)
    return found.astype(np.float32).reshape(-1, channels)


def _by_soundfile(content: bytes, where: str) -> Recording:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: its library is missing
        raise ConfigError(f"{where}: {REMEDY}") from None
    found: tuple[Any, int]
    try:
        found = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: is no recording that can be read ({error})") from None
    return Recording(*found)


def wav_bytes(samples: NDArray[Any], rate: int) -> bytes:
    """Samples (n,) in −1 … 1 as a WAV file of 16 bits.

    >>> read_wav(wav_bytes(np.array([0.5, -1.0]), 8000), "x").samples.tolist()
    [[0.5], [-1.0]]
    """
    body = np.clip(np.round(np.asarray(samples) * 32768), -32768, 32767).astype("<i2").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(body), b"WAVE", b"fmt ", 16, _PCM, 1, rate, 2 * rate,
                       2, 16, b"data", len(body))  # fmt: skip
    return head + body
