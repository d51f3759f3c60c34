"""Layout of a drawn graph in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

Point = tuple[float, float]
Edge = tuple[str, str]

GAP, BETWEEN = 0.55, 0.22
"""Inches between columns, and between nodes of one column."""
SWEEPS = 24


class NodeLayout(NamedTuple):
    """Centres of the nodes, and cubic Bézier curves (3k + 1 points) of the edges, in inches, y upwards."""

    centres: dict[str, Point]
    curves: list[list[Point]]


def place(
    sizes: Mapping[str, Point],
    edges: Sequence[Edge],
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    gap: float = GAP,
) -> NodeLayout:
    """Lay an acyclic graph out from left to right.

    Args:
        sizes: width and height of every node in inches; the order breaks ties.
        edges: pairs of nodes.
        first: nodes without incoming edges to put into the first column.
        last: nodes without outgoing edges to put into the last column.
        gap: inches between columns.

    Columns by longest path, order by barycentres (Sugiyama 1981), rows as close to their neighbours as possible. The
    same graph gives the same layout.
    """
    column = _columns(sizes, edges, first, last)
    height = {key: size[1] for key, size in sizes.items()}
    links: list[Edge] = []
    chains: list[list[str]] = []
    for place, (a, b) in enumerate(edges):
        # an edge over several columns gets a position in each, so that no node covers it
        between = [f"\0{place} {k}" for k in range(column[a] + 1, column[b])]
        column |= {name: column[a] + 1 + k for k, name in enumerate(between)}
        height |= dict.fromkeys(between, 0.12)
        chains.append([a, *between, b])
        links += pairwise(chains[-1])
    columns: list[list[str]] = [[] for _ in range(max(column.values(), default=0) + 1)]
    for key, place in column.items():
        columns[place].append(key)
    near: dict[str, list[str]] = {key: [] for key in column}
    for a, b in links:
        near[a].append(b)
        near[b].append(a)
    columns = _ordered(columns, column, near, links)
    y = _rows(columns, height, near)
    x: dict[str, float] = {}
    half: dict[str, float] = {}
    left = 0.0
    for keys in columns:
        wide = max((sizes[key][0] for key in keys if key in sizes), default=0.0)
        x |= dict.fromkeys(keys, left + wide / 2)
        half |= dict.fromkeys(keys, wide / 2)
        left += wide + gap
    own = {key: sizes[key][0] / 2 if key in sizes else half[key] for key in column}
    curves = [list(_curve(chain, x, y, own, half)) for chain in chains]
    return NodeLayout({key: (x[key], y[key]) for key in sizes}, curves)


def _columns(
    sizes: Mapping[str, Point], edges: Sequence[Edge], first: Sequence[str], last: Sequence[str]
) -> dict[str, int]:
    """The column of each node: one more than its predecessors; `last` nodes come after all others."""
    before: dict[str, list[str]] = {key: [] for key in sizes}
    for a, b in edges:
        before[b].append(a)
    column: dict[str, int] = {}

    def of(key: str) -> int:
        if key not in column:
            start = 0 if key in first or not first else 1
            column[key] = max((of(other) + 1 for other in before[key]), default=start)
        return column[key]

    end = max((of(key) for key in sizes if key not in last), default=0) + 1
    return {key: end if key in last else of(key) for key in sizes}


def _ordered(
    columns: list[list[str]], column: Mapping[str, int], near: Mapping[str, Sequence[str]], links: Sequence[Edge]
) -> list[list[str]]:
    """The best order of each column, by number of crossings, found in sweeps in both directions."""
    best, fewest = columns, _crossings(columns, links)
    for sweep in range(SWEEPS):
        step = 1 if sweep % 2 == 0 else -1
        columns = [list(keys) for keys in columns]
        for place in range(len(columns))[::step]:
            order = {key: k for keys in columns for k, key in enumerate(keys)}

            def middle(key: str, order: dict[str, int] = order, side: int = place - step) -> float:
                seen = [order[other] for other in near[key] if column[other] == side]
                return sum(seen) / len(seen) if seen else order[key]

            if sweep % 4 > 1:  # reverses ties, which might otherwise block each other for ever
                columns[place].reverse()
            columns[place].sort(key=middle)
        crossings = _crossings(columns, links)
        if crossings < fewest:
            best, fewest = columns, crossings
    return best


def _crossings(columns: Sequence[Sequence[str]], links: Sequence[Edge]) -> int:
    place = {key: (c, k) for c, keys in enumerate(columns) for k, key in enumerate(keys)}
    found = [(place[a][0], place[a][1], place[b][1]) for a, b in links]
    return sum(c == d and (a - e) * (b - f) < 0 for k, (c, a, b) in enumerate(found) for d, e, f in found[k + 1 :])


def _rows(
    columns: Sequence[Sequence[str]], height: Mapping[str, float], near: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The heights of nodes, near the mean of their neighbours, in order and without overlap."""
    y = {key: -float(k) for keys in columns for k, key in enumerate(keys)}
    for sweep in range(SWEEPS):
        for keys in columns[:: 1 if sweep % 2 == 0 else -1]:
            wanted = [sum(y[other] for other in near[key]) / len(near[key]) if near[key] else y[key] for key in keys]
            y |= zip(keys, _apart(wanted, [height[key] for key in keys]), strict=True)
    return y


def _apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The decreasing positions closest to `wanted` in least squares, with the distances that `heights` require."""
    offsets = [0.0]
    for above, below in pairwise(heights):
        offsets.append(offsets[-1] - (above + below) / 2 - BETWEEN)
    pools: list[list[float]] = []  # sum and number of adjacent nodes (isotonic regression by pooling)
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append([want - offset, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] < pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    means = [total / count for total, count in pools for _ in range(int(count))]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _curve(
    chain: Sequence[str],
    x: Mapping[str, float],
    y: Mapping[str, float],
    own: Mapping[str, float],
    half: Mapping[str, float],
) -> Iterator[Point]:
    """The curve from the right side of the first node to the left side of the last; it bends only between columns."""
    yield x[chain[0]] + own[chain[0]], y[chain[0]]
    for a, b in pairwise(chain):
        start, leave, enter, stop = x[a] + own[a], x[a] + half[a], x[b] - half[b], x[b] - own[b]
        bend = (leave + enter) / 2
        if leave > start:
            yield from _level(start, leave, y[a])
        yield from ((bend, y[a]), (bend, y[b]), (enter, y[b]))
        if stop > enter:
            yield from _level(enter, stop, y[b])
        if b != chain[-1]:  # horizontal across the column
            yield from _level(stop, x[b] + own[b], y[b])


def _level(start: float, stop: float, y: float) -> Iterator[Point]:
    for k in (1, 2, 3):
        yield start + (stop - start) * k / 3, y
