"""Recordings of tones, a letter each, for tests of recognisers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.audio import wav_bytes

RATE = 2000
SMALL = (
    f"data.sample_rate={RATE}", "data.bands=8", "data.stack=1", "data.hop_ms=20", "model.hidden_size=24",
    "train.threads=1",
)  # fmt: skip
TONES = {"a": 200, "b": 420, "c": 800, " ": 0}


def quietly(line: str) -> None:
    del line


def sung(text: str, seed: int = 0) -> NDArray[np.float64]:
    """A text as tones of about a tenth of a second, a letter each, in noise."""
    random = np.random.default_rng(seed)
    parts = []
    for letter in text:
        steps = np.arange(int(RATE * random.uniform(0.08, 0.14)))
        parts.append(np.sin(2 * np.pi * TONES[letter] * steps / RATE) / 2)
        parts.append(np.zeros(RATE // 50))
    found = np.concatenate([np.zeros(40), *parts])
    return found + random.normal(size=len(found)) * 0.01  # type: ignore[no-any-return]


def line_of(text: str, seed: int = 0) -> str:
    """The recording within a line."""
    return "data:audio/wav;base64," + base64.b64encode(wav_bytes(sung(text, seed), RATE)).decode()


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    letters = ["".join(random.choice([*"abc"], random.integers(1, 4))) for _ in range(2 * count)]
    return [f"{one} {other}" for one, other in zip(letters[::2], letters[1::2], strict=True)]


def folder_of(folder: Path, name: str, said: Sequence[str], seed: int = 0) -> Path:
    """Recordings and a manifest."""
    (folder / "wav").mkdir(exist_ok=True)
    rows = ["audio\ttext"]
    for number, text in enumerate(said):
        (folder / "wav" / f"{name}-{number}.wav").write_bytes(wav_bytes(sung(text, seed + number), RATE))
        rows.append(f"wav/{name}-{number}.wav\t{text}")
    path = folder / f"{name}.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def recipe(folder: Path, data: str = "", said: Sequence[str] | None = None) -> Path:
    folder_of(folder, "train", texts(12) if said is None else said)
    path = folder / "recipe.yaml"
    path.write_text(f"task: speech\ndata:\n  train: {folder}/train.tsv\n{data}train:\n  max_epochs: 1\n")
    return path
