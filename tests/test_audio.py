"""Recordings: WAV files as programs write them, other formats, and log-mel features by the formula."""

from __future__ import annotations

import base64
import cmath
import math
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from everstep.data.log_mel import log_mel, mel_filters
from everstep.data.readers.audio import read_recording, read_wav, wav_bytes
from everstep.errors import ConfigError, DataError

SAMPLES = np.array([[0.0, 0.5], [-1.0, 0.25], [0.75, -0.5]])


def wav(body: bytes, kind: int, bits: int, channels: int = 2, size: int | None = None, rate: int = 8000) -> bytes:
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    head = b"WAVE" + b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", len(form)) + form
    size = len(body) if size is None else size
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + head + b"data" + struct.pack("<I", size) + body


def encoded(bits: int) -> bytes:
    whole = np.round(SAMPLES.ravel() * 2 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype(np.uint8).tobytes()
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_whole_numbers_of_any_width(bits: int) -> None:
    found = read_wav(wav(encoded(bits), 1, bits), "x.wav")
    assert found.rate == 8000
    np.testing.assert_allclose(found.samples, SAMPLES, atol=1e-6)


@pytest.mark.parametrize("bits", [32, 64])
def test_floats(bits: int) -> None:
    found = read_wav(wav(SAMPLES.astype(f"<f{bits // 8}").tobytes(), 3, bits), "x.wav")
    np.testing.assert_allclose(found.samples, SAMPLES)


def test_an_extensible_header() -> None:
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 2, 8000, 32000, 4, 16, 22, 16, 3) + struct.pack("<H", 1) + bytes(14)
    content = (
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 12) + encoded(16)
    )
    np.testing.assert_allclose(read_wav(content, "x.wav").samples, SAMPLES, atol=1e-6)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 1000])
def test_sizes_that_programs_write_before_they_know_them(size: int) -> None:
    found = read_wav(wav(encoded(16) + b"\1", 1, 16, size=size), "x.wav")
    np.testing.assert_allclose(found.samples, SAMPLES, atol=1e-6)


def test_no_samples_are_none() -> None:
    assert read_wav(wav(b"", 1, 16), "x.wav").mono(16000).shape == (0,)


def test_channels_are_mixed_and_rates_changed(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(wav(encoded(16), 1, 16))
    np.testing.assert_allclose(read_recording(tmp_path / "x.wav").mono(8000), SAMPLES.mean(1), atol=1e-4)
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100) * 0.5
    (tmp_path / "tone.wav").write_bytes(wav_bytes(tone, 44100))
    found = read_recording(tmp_path / "tone.wav").mono(16000)
    assert len(found) == 16000
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 0.5
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize("rate", [1, 999, 1_000_000_007])
def test_a_rate_that_would_fill_the_memory_is_refused(rate: int) -> None:
    found = read_wav(wav(encoded(16), 1, 16, rate=rate), "x.wav")
    with pytest.raises(DataError, match=f"x.wav: expected from 1,000 to 1,000,000 .*16,000.*says {rate:,}"):
        found.mono(16000, "x.wav")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"RIFF", "it ends too early"),
        (wav(encoded(16), 1, 16)[:50], "it ends too early"),
        (wav(encoded(16), 1, 16, channels=0), "it has 0 channels"),
        (wav(encoded(16), 1, 16, rate=0), "0 samples a second"),
        (wav(struct.pack("<2f", math.nan, 1), 3, 32), "not finite"),
    ],
)
def test_damaged_files_are_refused_with_their_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.wav.*{said}"):
        read_recording(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.wav: cannot be read"):
        read_recording(tmp_path / "none.wav")
    with pytest.raises(DataError, match=r"cannot be read .*folder"):
        read_recording(tmp_path)


def test_a_recording_within_a_line() -> None:
    given = "data:audio/wav;base64," + base64.b64encode(wav_bytes(SAMPLES[:, 0], 8000)).decode()
    np.testing.assert_allclose(read_recording(given).mono(8000), SAMPLES[:, 0], atol=1e-4)
    with pytest.raises(DataError, match="the recording: is no base64"):
        read_recording("data:audio/wav;base64,???")
    with pytest.raises(DataError, match="expected data:audio/wav;base64"):
        read_recording("data:audio/wav,RIFF")


def test_other_formats_are_read_by_soundfile_or_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.flac").write_bytes(b"fLaC and so on")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"x\.flac: .*pip install 'everstep\[speech\]'"):
        read_recording(tmp_path / "x.flac")
    law = wav(bytes(4), 7, 8)
    with pytest.raises(ConfigError, match=r"WAV encoding 7, 8 bits"):
        read_wav(law, "law.wav")

    def read(file: Any, dtype: str, always_2d: bool) -> tuple[NDArray[Any], int]:
        if file.read() == law:
            raise RuntimeError("bad header")
        assert (dtype, always_2d) == ("float32", True)
        return SAMPLES.astype(np.float32), 22050

    monkeypatch.setitem(sys.modules, "soundfile", types.SimpleNamespace(read=read))
    found = read_recording(tmp_path / "x.flac")
    assert found.rate == 22050
    np.testing.assert_allclose(found.samples, SAMPLES)
    with pytest.raises(DataError, match=r"law\.wav .*bad header"):
        read_wav(law, "law.wav")


def test_flac_files(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    tone = np.sin(np.arange(800) / 9) / 2
    soundfile.write(tmp_path / "x.flac", tone, 8000)
    np.testing.assert_allclose(read_recording(tmp_path / "x.flac").mono(8000), tone, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------- features


def by_formula(samples: NDArray[Any], rate: int, bands: int, window: int, hop: int, size: int) -> list[list[float]]:
    """The equations of `log_mel`, a sum at a time."""

    def mel(frequency: float) -> float:
        return 2595 * math.log10(1 + frequency / 700)

    edges = [mel(rate / 2) * b / (bands + 1) for b in range(bands + 2)]
    found = []
    for start in range(0, len(samples) - window + 1, hop):
        weighted = [(0.5 - 0.5 * math.cos(2 * math.pi * i / window)) * samples[start + i] for i in range(window)]
        powers = [
            abs(sum(x * cmath.exp(-2j * math.pi * i * k / size) for i, x in enumerate(weighted))) ** 2
            for k in range(size // 2 + 1)
        ]
        row = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            energy = 0.0
            for k, power in enumerate(powers):
                at = mel(k * rate / size)
                if low < at < high:
                    energy += power * ((at - low) / (centre - low) if at <= centre else (high - at) / (high - centre))
            row.append(math.log(max(energy, 1e-10)))
        found.append(row)
    return found


def test_features_are_those_of_the_formula() -> None:
    samples = np.random.default_rng(0).normal(size=330) * 0.1
    found = log_mel(torch.from_numpy(samples), 4000, bands=9)
    expected = by_formula(samples, 4000, 9, window=100, hop=40, size=128)
    assert found.shape == (6, 9)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_short_and_silent_recordings_have_a_frame() -> None:
    assert log_mel(torch.ones(3), 8000).shape == (1, 40)
    torch.testing.assert_close(log_mel(torch.zeros(200), 8000), torch.full((1, 40), math.log(1e-10)))
    assert log_mel(torch.zeros(280), 8000).shape == (2, 40)


def test_a_tone_is_in_its_band() -> None:
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(8000) / 16000)
    band = int(log_mel(tone, 16000, bands=20).mean(0).argmax())
    centre = 2595 * math.log10(1 + 8000 / 700) * (band + 1) / 21
    assert 700 * (10 ** (centre / 2595) - 1) == pytest.approx(1000, rel=0.15)


def test_bands_without_a_frequency_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"band 2 holds no frequency; ask for fewer \(data.bands\)"):
        mel_filters(80, 16000, 128)
