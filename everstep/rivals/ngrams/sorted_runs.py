"""Counting distinct numbers of a stream that is larger than memory: sorted runs, merged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.rivals.ngrams.workspace import Workspace
from everstep.storage.scratch import release

Ints = NDArray[np.int64]


def distinct(blocks: Iterable[Ints], work: Workspace) -> tuple[Ints, Ints]:
    """The distinct numbers of all blocks in ascending order, and how often each occurs.

    Each block becomes a sorted run. Runs beyond the memory limit lie on disk, and merging reads a window of each.

    >>> keys, counts = distinct([np.array([5, 3, 5]), np.array([3, 9])], Workspace(1 << 20))
    >>> keys.tolist(), counts.tolist()
    ([3, 5, 9], [2, 2, 1])
    """
    runs: list[tuple[Ints, Ints]] = []
    for block in blocks:
        found = np.unique(block, return_counts=True)
        run = (_kept(found[0], work), _kept(found[1], work))
        if len(run[0]):
            runs.append(run)
    if not runs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return runs[0] if len(runs) == 1 else _merged(runs, work)


def _kept(values: Ints, work: Workspace) -> Ints:
    """A copy of the values where the workspace has room for it."""
    copy = work.array(len(values), np.int64)
    copy[:] = values
    release(copy)
    return copy


def _merged(runs: list[tuple[Ints, Ints]], work: Workspace) -> tuple[Ints, Ints]:
    """One run of the sums of several."""
    total = sum(len(keys) for keys, _ in runs)
    keys, counts = work.array(total, np.int64), work.array(total, np.int64)
    share = max(1, work.rows // len(runs))
    at = [0] * len(runs)
    filled = 0
    while open_runs := [number for number, (run, _) in enumerate(runs) if at[number] < len(run)]:
        windows = {number: slice(at[number], at[number] + share) for number in open_runs}
        # every number up to the least last one lies in a window
        bound = min(runs[number][0][windows[number]][-1] for number in open_runs)
        parts: list[tuple[Any, Any]] = []
        for number in open_runs:
            run, times = runs[number]
            taken = int(np.searchsorted(run[windows[number]], bound, "right"))
            parts.append((run[at[number] : at[number] + taken], times[at[number] : at[number] + taken]))
            at[number] += taken
        some, sums = _summed(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        keys[filled : filled + len(some)] = some
        counts[filled : filled + len(some)] = sums
        filled += len(some)
        for array in (keys, counts, *(array for run in runs for array in run)):
            release(array)
    return keys[:filled], counts[:filled]


def _summed(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Distinct keys in ascending order, each with the sum of its counts."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[first], np.add.reduceat(counts, first)
