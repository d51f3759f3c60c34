"""The bundled data, whole, and cut short for pages and examples, which have to run, and learn nothing there."""

from __future__ import annotations

import io
import lzma
from functools import cache
from pathlib import Path

import numpy as np

from everstep.data.text import text_files

BUNDLED = Path(text_files.__file__).parents[1] / "bundled"
CHARACTERS, LINES, SERIES, PICTURES = 60_000, 801, 60, 240


@cache
def shakespeare() -> str:
    """The whole bundled text."""
    return lzma.decompress((BUNDLED / "shakespeare.txt.xz").read_bytes()).decode()


def _text(text: str, name: str) -> str:
    if name.startswith("rides"):  # a season of each length has to be there
        return text
    if name.startswith("shakespeare"):
        return text[: text.rfind("\n\n", 0, CHARACTERS) + 1]
    lines = text.splitlines(keepends=True)
    if name.endswith(".conll.xz"):
        return "".join(lines[: next((n for n, line in enumerate(lines) if n > LINES and not line.strip()), None)])
    if lines[0].startswith("unique_id"):
        last = list(dict.fromkeys(line.partition(",")[0] for line in lines[1:]))[:SERIES]
        return "".join([lines[0], *(line for line in lines[1:] if line.partition(",")[0] in last)])
    return "".join(lines[:LINES])


def _pictures(data: bytes) -> bytes:
    held = io.BytesIO()
    np.savez_compressed(held, **{name: rows[:PICTURES] for name, rows in np.load(io.BytesIO(data)).items()})
    return held.getvalue()


def written(folder: Path) -> Path:
    """A folder as that of the package, with the beginnings of its files."""
    (folder / "bundled").mkdir()
    for path in BUNDLED.glob("*.xz"):
        data = lzma.decompress(path.read_bytes())
        cut = _pictures(data) if path.name.endswith(".npz.xz") else _text(data.decode(), path.name).encode()
        (folder / "bundled" / path.name).write_bytes(lzma.compress(cut, preset=0))
    return folder
