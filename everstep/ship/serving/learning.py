"""The learning curves of a run as numbers, while it trains and after."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from everstep.learn.metrics import METRICS_FILE, read_metrics

MOST_POINTS = 1000
"""Most points of a curve; of more, some are left out."""


def learning(folder: Path) -> dict[str, Any]:
    """Every number that `metrics.jsonl` records, as a curve: name → [[step, value], …], with the last record.

    Raises:
        RunError: the file cannot be read.
    """
    records = read_metrics(folder / METRICS_FILE)
    curves: dict[str, list[list[float]]] = {}
    for record in records:
        for name, value in record.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name != "step" and is_number:
                curves.setdefault(name, []).append([record["step"], value])
    return {"curves": {name: _thinned(points) for name, points in curves.items()}, "last": records[-1:]}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most about MOST_POINTS of them, the last among them."""
    every = math.ceil(len(points) / MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
