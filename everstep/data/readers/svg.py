"""SVG pictures as the paths of a pen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from everstep.data.text.text_files import read_start
from everstep.errors import DataError

Points = list[complex]
"""Points of a path, x + iy."""
_LARGEST = 4 << 20
_PIECES = 8
"""Straight pieces of a curve."""
_TOKEN = re.compile(r"([A-Za-z])|([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|([\s,]+)|(.)", re.DOTALL)
_READS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "Z": 0}
"""Numbers that each command of a path takes."""


def svg_paths(path: Path) -> list[NDArray[np.float64]]:
    """The points (n, 2) of each path of a picture, in their order: `path`, `polyline`, `polygon` and `line`.

    A curve becomes 8 straight pieces. Other shapes, such as texts, are no pen's and left out, and so is what a `defs`
    holds.

    Args:
        path: the file, plain or packed by gzip or xz.

    Raises:
        DataError: it is no SVG, larger than 4 MiB, or has arcs or transformations on what is drawn.
    """
    content = read_start(path, _LARGEST + 1)
    if len(content) > _LARGEST:
        raise DataError(f"{path}: expected a picture of at most {_LARGEST:,} bytes; it has more")
    if b"<!ENTITY" in content:
        raise DataError(f"{path}: expected a picture without entities of its own (<!ENTITY …>)")
    try:
        root = ElementTree.fromstring(content)
        found = [points for points in _drawn(root, False) if points]
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no SVG picture that can be read ({error})") from None
    paths = [np.array([(point.real, point.imag) for point in points]) for points in found]
    if not all(np.isfinite(points).all() for points in paths):
        raise DataError(f"{path}: expected finite numbers; got one that is none or too large")
    return paths


def _drawn(element: ElementTree.Element, moved: bool) -> Iterator[Points]:
    name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
    if name in ("defs", "symbol", "clipPath", "mask", "marker", "pattern"):
        return
    moved = moved or "transform" in element.attrib
    paths: list[Points] = []
    if name == "path":
        paths = list(path_points(element.get("d", "")))
    elif name in ("polyline", "polygon"):
        numbers = [value for value in _tokens(element.get("points", "")) if isinstance(value, float)]
        points = [complex(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        paths = [points + (points[:1] if name == "polygon" else [])]
    elif name == "line":
        x1, y1, x2, y2 = (float(element.get(key, "0")) for key in ("x1", "y1", "x2", "y2"))
        paths = [[complex(x1, y1), complex(x2, y2)]]
    if paths and moved:
        raise ValueError(f"a {name} has a transformation: apply it in the program that drew it")
    yield from paths
    for child in element:
        yield from _drawn(child, moved)


def _tokens(text: str) -> Iterator[str | float]:
    for command, number, _, other in _TOKEN.findall(text):
        if other:
            raise ValueError(f"{other!r} stands among the numbers of a path")
        if command or number:
            yield command or float(number)


def path_points(data: str) -> Iterator[Points]:
    """The points of each part of the data of a path.

    >>> list(path_points("M1,2 l3 0 v4z m5 5 5 0"))
    [[(1+2j), (4+2j), (4+6j), (1+2j)], [(6+7j), (11+7j)]]

    Raises:
        ValueError: a command is unknown, an arc, or has too few numbers.
    """
    tokens, command, points, start = list(_tokens(data)), "", Points(), 0j
    before, bend, at = 0j, "", 0
    while at < len(tokens):
        if isinstance(token := tokens[at], str):
            command, at = token, at + 1
        kind, relative = command.upper(), command.islower()
        if kind not in _READS:
            raise ValueError(f"a path has the command {command or 'of no letter'!r}; expected {' '.join(_READS)}")
        given = tokens[at : at + _READS[kind]]
        if len(given) < _READS[kind] or not all(isinstance(one, float) for one in given):
            raise ValueError(f"a path's {command} takes {_READS[kind]} numbers")
        at += _READS[kind]
        here = points[-1] if points else start
        if kind == "M":
            if points:
                yield points
            start = _places(given, here, relative)[0]
            points, command, bend = [start], "l" if relative else "L", ""
        elif kind == "Z":
            if not points or (at < len(tokens) and isinstance(tokens[at], float)):
                raise ValueError("a path's Z closes a part, and takes no numbers")
            yield [*points, start]
            points, bend = [], ""
        else:
            ends = _places(given, here, relative, kind)
            mirrored = 2 * here - before if bend == {"S": "C", "T": "Q"}.get(kind, kind) else here
            hinges = [here, *([mirrored] if kind in "ST" else []), *ends]
            before, bend = hinges[-2], {"S": "C", "T": "Q"}.get(kind, kind)
            points = [*(points or [start]), *_curve(hinges)]
    if points:
        yield points


def _places(given: list[str | float], here: complex, relative: bool, kind: str = "") -> Points:
    numbers = [float(one) for one in given]
    if kind == "H":
        return [complex(numbers[0] + (here.real if relative else 0), here.imag)]
    if kind == "V":
        return [complex(here.real, numbers[0] + (here.imag if relative else 0))]
    return [complex(x, y) + (here if relative else 0) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]


def _curve(hinges: Points) -> Points:
    """The end of a line, or points of a Bézier curve behind its first hinge (de Casteljau)."""
    if len(hinges) == 2:
        return hinges[1:]
    found = []
    for piece in range(1, _PIECES + 1):
        t, part = piece / _PIECES, hinges
        while len(part) > 1:
            part = [(1 - t) * a + t * b for a, b in pairwise(part)]
        found.append(part[0])
    return found
