"""Make up the recordings that come with everstep: words in Morse code, `everstep:morse.train` and `.test`.

Each recording has its own tone, speed and unevenness of the hand, and the words of a test recording are not those of
training. The manifests hold the recordings themselves, as WAV files of 8 bits and 2,000 samples a second in base64.

    python benchmarks/make_morse.py everstep/data/bundled
"""

from __future__ import annotations

import base64
import lzma
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZES = {"train": 260, "test": 40}
RATE = 2000
CODE = {
    "a": ".-", "d": "-..", "e": ".", "g": "--.", "i": "..", "k": "-.-", "m": "--", "n": "-.", "o": "---", "r": ".-.",
    "s": "...", "t": "-", "u": "..-", "w": ".--",
}  # fmt: skip


def word(random: np.random.Generator) -> str:
    """Two to four letters."""
    return "".join(random.choice([*CODE], random.integers(2, 5)))


def keyed(text: str, random: np.random.Generator) -> NDArray[np.float64]:
    """The tone of a text: a dot is a unit, a dash three; pauses are one, three between letters, seven between words."""
    unit, tone, hand = random.uniform(0.03, 0.05), random.uniform(300, 800), random.uniform(0, 0.15)
    units: list[tuple[float, float]] = [(0, 2)]
    for letter in text:
        if letter == " ":
            units.append((0, 4))
            continue
        for mark in CODE[letter]:
            units += [(1, 1 if mark == "." else 3), (0, 1)]
        units.append((0, 2))
    lengths = [max(1, round(RATE * unit * many * (1 + hand * random.uniform(-1, 1)))) for _, many in units]
    loud = np.concatenate([np.full(length, on) for length, (on, _) in zip(lengths, units, strict=True)])
    loud = np.convolve(loud, np.ones(9) / 9, "same")  # a key that clicked would be heard in all bands
    return loud * np.sin(2 * np.pi * tone * np.arange(len(loud)) / RATE) / 2  # type: ignore[no-any-return]


def line(text: str, random: np.random.Generator) -> str:
    """A line of the manifest."""
    body = np.round(keyed(text, random) * 127 + 128).astype(np.uint8).tobytes()
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    return "data:audio/wav;base64," + base64.b64encode(b"RIFF" + struct.pack("<I", len(chunks)) + chunks).decode()


if __name__ == "__main__":
    drawn = np.random.default_rng(0)
    known = sorted({word(drawn) for _ in range(150)})
    new = sorted({word(drawn) for _ in range(40)} - set(known))
    for name, words in (("train", known), ("test", new)):
        lines = ["audio\ttext"]
        for _ in range(SIZES[name]):
            text = " ".join(drawn.choice(words, drawn.integers(1, 3)))
            lines.append(f"{line(text, drawn)}\t{text}")
        path = Path(sys.argv[1], f"morse.{name}.tsv.xz")
        path.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode(), preset=9))
