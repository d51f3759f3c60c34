"""Figures of a server, as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class _Histogram:
    """How many values are at most each bound."""

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        totals = list(accumulate(self._counts))
        found = [f'{name}_bucket{{le="{bound:g}"}} {n}' for bound, n in zip(self._bounds, totals, strict=False)]
        total = totals[-1]
        found.append(f'{name}_bucket{{le="+Inf"}} {total}')
        return [*found, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Tally:
    """Counts requests, steps and texts. `gauges` are read when somebody asks: name → (meaning, value now).

    >>> tally = Tally({"sessions": ("sessions kept", lambda: 2)})
    >>> tally.request("/predict", 200, 0.01)
    >>> [line for line in tally.text().splitlines() if "predict" in line or "_sessions" in line][-1]
    'everstep_sessions 2'
    """

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]):
        self._gauges = gauges
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds, self._rows = _Histogram(SECONDS), _Histogram(ROWS)
        self._step_seconds = _Histogram(SECONDS)
        self._totals = {"steps": 0, "generated_pieces": 0, "reloads": 0}

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is its pattern, such as "/sessions/{session}"."""
        self._requests[route, status] = self._requests.get((route, status), 0) + 1
        self._seconds.add(seconds)

    def turn(self, rows: int, seconds: float) -> None:
        """The model made one step of some rows."""
        self._totals["steps"] += rows
        self._rows.add(rows)
        self._step_seconds.add(seconds)

    def count(self, name: str, more: int = 1) -> None:
        """Add to a total."""
        self._totals[name] += more

    def text(self) -> str:
        """The figures in Prometheus' text format 0.0.4."""
        lines = ["# HELP everstep_requests_total answered requests", "# TYPE everstep_requests_total counter"]
        for (route, status), n in sorted(self._requests.items()):
            lines.append(f'everstep_requests_total{{route="{route}",status="{status}"}} {n}')
        for name, meaning, histogram in (
            ("request_seconds", "seconds of a request", self._seconds),
            ("step_rows", "rows of a step of the model", self._rows),
            ("step_seconds", "seconds of a step of the model", self._step_seconds),
        ):
            lines += [f"# HELP everstep_{name} {meaning}", f"# TYPE everstep_{name} histogram"]
            lines += histogram.lines(f"everstep_{name}")
        for name, total in self._totals.items():
            lines += [f"# TYPE everstep_{name}_total counter", f"everstep_{name}_total {total}"]
        for name, (meaning, value) in self._gauges.items():
            lines += [f"# HELP everstep_{name} {meaning}", f"# TYPE everstep_{name} gauge"]
            lines.append(f"everstep_{name} {value():g}")
        return "\n".join(lines) + "\n"
