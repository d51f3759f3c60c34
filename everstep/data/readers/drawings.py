"""Drawings as moves of a pen: JSON lines, the drawings of Quick, Draw!, SVG pictures, and arrays of numpy.

A drawing is (T, 3): Δx and Δy from the point before, the first from where nothing is drawn yet, and whether the pen is
lifted behind the point (1) or draws on to the next (0). As text it is a line of JSON: `[[0,0,0],[30,4,0],[-8,20,1]]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.number_formats import held_arrays
from everstep.data.readers.svg import svg_paths
from everstep.data.text.text_files import file_lines
from everstep.errors import DataError
from everstep.storage.reading import parse_json

Drawing: TypeAlias = NDArray[np.float64]
EXPECTED = "[[Δx, Δy, lifted], …] with lifted 0 or 1, or the pen's paths as in Quick, Draw!, [[[x, …], [y, …]], …]"
OBJECTS = """a file of sketch-rnn holds pickled objects, which would run as code; convert one that you trust: \
z = np.load(FILE, allow_pickle=True, encoding="latin1"); np.savez(NEW, \
**{f"{k}_strokes": np.concatenate(z[k]) for k in z}, **{f"{k}_lengths": [len(d) for d in z[k]] for k in z})"""


def move_text(dx: float, dy: float, lifted: int) -> str:
    """A move as JSON.

    >>> move_text(3.0, -0.25, 1)
    '[3,-0.25,1]'
    """
    return f"[{dx:.6g},{dy:.6g},{lifted}]"


def drawing_text(drawing: Drawing) -> str:
    """A drawing as a line of JSON.

    >>> drawing_text(np.array([[0, 0, 0], [3.5, -2, 1]]))
    '[[0,0,0],[3.5,-2,1]]'
    """
    return f"[{','.join(move_text(dx, dy, int(lifted)) for dx, dy, lifted in drawing.tolist())}]"


def drawing_of(text: str, where: str) -> Drawing:
    """A drawing from a line; `where` it stands, for errors. An empty line is an empty drawing.

    >>> drawing_of('{"word": "v", "drawing": [[[0, 5, 10], [0, 20, 0]]]}', "line 1").tolist()
    [[0.0, 0.0, 0.0], [5.0, 20.0, 0.0], [5.0, -20.0, 1.0]]

    Raises:
        DataError: it is no drawing, or a number is not finite.
    """
    try:
        given: Any = parse_json(text) if text.strip() else []
    except ValueError as error:
        raise DataError(f"{where}: expected a drawing as JSON, {EXPECTED}; {error}") from None
    given = given.get("drawing") if isinstance(given, dict) else given
    if not isinstance(given, list):
        raise DataError(f"{where}: expected a drawing, {EXPECTED}; got {text.strip()[:60]!r}")
    try:
        found = _moves(given)
    except (ValueError, TypeError, OverflowError):
        found = None
    if found is None or not np.isfinite(found).all() or not np.isin(found[:, 2], (0, 1)).all():
        raise DataError(f"{where}: expected {EXPECTED}, finite numbers alone; got {text.strip()[:60]!r}")
    return found


def _moves(given: list[Any]) -> Drawing | None:
    """Moves, or the points of paths as moves; None if they are neither."""
    if all(isinstance(one, list) and len(one) == 3 and all(map(_is_number, one)) for one in given):
        return np.array(given, np.float64).reshape(-1, 3)
    if not all(isinstance(path, list) and len(path) >= 2 and _is_path(path[0], path[1]) for path in given):
        return None
    return path_moves([np.array(path[:2], np.float64).T for path in given if path[0]])


def path_moves(points: list[Drawing]) -> Drawing:
    """Paths of points (n, 2), n ≥ 1, as moves; the first begins where it is."""
    if not points:
        return np.zeros((0, 3))
    lifted = np.concatenate([np.arange(len(path)) == len(path) - 1 for path in points])
    every = np.concatenate(points)
    return np.column_stack([np.diff(every, axis=0, prepend=every[:1]), lifted])


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_path(x: Any, y: Any) -> bool:
    return isinstance(x, list) and isinstance(y, list) and len(x) == len(y) and all(map(_is_number, [*x, *y]))


def read_drawings(path: Path, part: str, encoding: str = "utf-8") -> Iterator[Drawing]:
    """The drawings of a file.

    `.npz` holds for each part the moves of all drawings one behind another, PART_strokes (N, 3), and the number of
    moves of each, PART_lengths. `.svg` is one drawing (`svg_paths`). Any other file
    is text, a drawing a line (`drawing_of`), such as `.ndjson`.

    Args:
        path: the file, plain or packed by gzip or xz.
        part: the part to read, of an .npz: "train", "valid", "test".
        encoding: Python's name of the encoding, for text.

    Raises:
        DataError: the file cannot be read, has no such part, or holds something else.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".npz"):
        yield from _of_arrays(path, part)
    elif name.endswith(".svg"):
        yield path_moves(svg_paths(path))
    else:
        yield from _of_lines(path, encoding)


def _of_lines(path: Path, encoding: str) -> Iterator[Drawing]:
    for number, line in enumerate(file_lines(path, encoding), 1):
        if line.strip():
            yield drawing_of(line, f"{path}, line {number}")


def _of_arrays(path: Path, part: str) -> list[Drawing]:
    held = held_arrays(path, OBJECTS)
    names = (f"{part}_strokes", f"{part}_lengths")
    if not set(names) <= set(held):
        raise DataError(f"{path}: expected the arrays {' and '.join(names)}; it has {', '.join(held) or 'none'}")
    moves, lengths = (held[name] for name in names)
    good = moves.ndim == 2 and moves.shape[1] == 3 and moves.dtype.kind in "iuf"
    if not good or not np.isfinite(moves).all() or not np.isin(moves[:, 2], (0, 1)).all():
        raise DataError(f"{path}, {names[0]}: expected (N, 3) finite numbers, Δx, Δy and lifted, 0 or 1; "
                        f"got {moves.dtype} {moves.shape}")  # fmt: skip
    whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and (lengths >= 0).all()
    if not whole or int(lengths.sum()) != len(moves):
        raise DataError(f"{path}, {names[1]}: expected the lengths of drawings, {len(moves):,} points in all; got "
                        f"{lengths.dtype} {lengths.shape}")  # fmt: skip
    return np.split(moves.astype(np.float64), np.cumsum(lengths)[:-1]) if len(lengths) else []
