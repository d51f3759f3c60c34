"""Make up the gestures that come with everstep: strokes of a pen in a plane, `everstep:gestures.train` and `.test`.

Six classes in three pairs: the two of a pair draw the same line in opposite directions, so that what is drawn does not
tell, but when. Strokes have 12 to 32 points, another size, place and slant each, an unsteady hand, and a twentieth of
their numbers is missing.

    python benchmarks/make_gestures.py everstep/data/bundled
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np

SIZES = {"train": 1440, "test": 480}
MISSING = 0.05


def line(kind: str, at: np.ndarray) -> np.ndarray:
    """(T, 2) points of a line at times from 0 to 1."""
    turn = 2 * np.pi * at
    if kind == "circle":
        return np.stack([np.cos(turn), np.sin(turn)], 1)
    if kind == "eight":
        return np.stack([np.sin(2 * turn), np.cos(turn)], 1)
    return np.stack([2 * at - 1, 2 * np.abs((3 * at) % 1 - 0.5) - 0.5], 1)


def gesture(random: np.random.Generator, kind: str, back: bool) -> np.ndarray:
    """(T, 2) points with NaN where a number is missing."""
    at = np.sort(random.uniform(0, 1, random.integers(12, 33)))
    begin = random.uniform() if kind != "zigzag" else 0.0
    points = line(kind, (at + begin) % 1 if kind != "zigzag" else at)
    points = points[::-1] if back else points
    slant = random.normal(0, 0.25)
    turned = points @ np.array([[np.cos(slant), np.sin(slant)], [-np.sin(slant), np.cos(slant)]])
    found = turned * random.uniform(0.5, 1.5) + random.normal(0, 0.5, 2)
    found = found + np.cumsum(random.normal(0, 0.03, found.shape), 0)
    found[random.uniform(size=found.shape) < MISSING] = np.nan
    return found


def rows(split: str) -> list[str]:
    """The lines of a file."""
    random = np.random.default_rng(list(SIZES).index(split))
    kinds = [(kind, back) for kind in ("circle", "eight", "zigzag") for back in (False, True)]
    told = ["unique_id,step,x,y,label"]
    for number in range(SIZES[split]):
        kind, back = kinds[number % len(kinds)]
        for step, (x, y) in enumerate(gesture(random, kind, back), 1):
            shown = ["" if np.isnan(value) else f"{value:.2f}" for value in (x, y)]
            told.append(",".join([f"g{number:03}", str(step), *shown, f"{kind} {'back' if back else 'forth'}"]))
    return told


if __name__ == "__main__":
    for name in SIZES:
        path = Path(sys.argv[1], f"gestures.{name}.csv.xz")
        path.write_bytes(lzma.compress(("\n".join(rows(name)) + "\n").encode(), preset=9))
