"""Make up the clips that come with everstep: shapes that move, `everstep:shapes.train` and `everstep:shapes.test`.

A class is a shape (square, circle, cross) and where it goes (left, right, up, down). It moves by a pixel or two a step
and comes in again on the other side, from any place, so that one frame shows the shape, and nothing of where it goes.
There are 6,912 such clips; none is in both files.

    python benchmarks/make_shapes.py everstep/data/bundled
"""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path

import numpy as np

SIZES = {"train": 2400, "test": 480}
STEPS, SIDE = 6, 12
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def shape(kind: str, radius: int) -> np.ndarray:
    """(2 r + 1, 2 r + 1) of 0 and 1."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    if kind == "square":
        return np.ones_like(x)
    if kind == "circle":
        return (x**2 + y**2 <= radius**2 + 0.5).astype(int)
    return ((np.abs(x) == np.abs(y)) | (x == 0) & (y == 0)).astype(int)


def clip(random: np.random.Generator, kind: str, way: str) -> np.ndarray:
    """(STEPS, SIDE, SIDE) bytes."""
    found = np.zeros((STEPS, SIDE, SIDE), np.uint8)
    mark = shape(kind, int(random.integers(2, 4)))
    speed, place = int(random.integers(1, 3)), random.integers(0, SIDE, 2)
    for step in range(STEPS):
        frame = np.zeros((SIDE, SIDE), np.uint8)
        frame[: len(mark), : len(mark)] = mark
        at = place + step * speed * np.array(WAYS[way])
        found[step] = np.roll(frame, at, (0, 1))
    return found


def drawn(split: str) -> tuple[np.ndarray, np.ndarray]:
    """x (N, STEPS, SIDE, SIDE) of 0 and 1, y (N,)."""
    random = np.random.default_rng(list(SIZES).index(split))
    classes = [(kind, way) for kind in ("square", "circle", "cross") for way in WAYS]
    chosen = [classes[number % len(classes)] for number in range(SIZES[split])]
    known = set() if split == "train" else {one.tobytes() for one in drawn("train")[0]}
    found = []
    for one in chosen:
        found.append(clip(random, *one))
        while found[-1].tobytes() in known:
            found[-1] = clip(random, *one)
    return np.stack(found), np.array([" ".join(one) for one in chosen])


def clips(split: str) -> bytes:
    """The content of a file: the arrays x and y of `drawn`."""
    out = io.BytesIO()
    x, y = drawn(split)
    np.savez(out, x=x, y=y)
    return out.getvalue()


if __name__ == "__main__":
    for name in SIZES:
        Path(sys.argv[1], f"shapes.{name}.npz.xz").write_bytes(lzma.compress(clips(name), preset=9))
