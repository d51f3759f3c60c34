"""Two or more ways to do a thing, timed alternately in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternately(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    rest: float = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call: A B C A B C …, after `warmup` rounds that do not count.

    With a `rest` (seconds) before it, and then one call that does not count, no way meets the spinning threads of
    another that has threads of its own. By `time.process_time` as the `clock` other work on the machine counts less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warmup + rounds):
        for name, way in ways.items():
            if rest:
                time.sleep(rest)
                way()
            start = clock()
            way()
            if number >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, and the least and the most, in milliseconds."""
    values = [1000 * value for value in seconds]
    return {"median_ms": statistics.median(values), "least_ms": min(values), "most_ms": max(values)}
