"""Make up the series that come with everstep: hourly rides at 12 stations over 12 weeks, `everstep:rides`.

Each station has a level that wanders, an hour of the morning and one of the evening at which people come on working
days, and a hump at noon on others. Rain, which nobody is told of, comes for some hours and lasts: it takes a share of
the rides. Counts are drawn from a negative binomial distribution.

    python benchmarks/make_rides.py everstep/data/bundled/rides.csv.xz
"""

from __future__ import annotations

import lzma
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

STATIONS, WEEKS, BEGIN = 12, 12, datetime(2024, 3, 4)


def rides() -> np.ndarray:
    """(hours, stations) whole numbers."""
    random = np.random.default_rng(7)
    hours = np.arange(WEEKS * 168)
    clock, weekend = hours % 24, (hours // 24) % 7 >= 5
    found = []
    rain = np.zeros(len(hours))
    for hour in hours[1:]:
        rain[hour] = random.random() < (0.85 if rain[hour - 1] else 0.03)
    for _ in range(STATIONS):
        morning, evening, share = random.normal(8, 0.7), random.normal(17.5, 0.8), random.uniform(0.3, 0.7)
        working = share * bump(clock, morning, 1.2) + (1 - share) * bump(clock, evening, 1.8)
        free = 0.6 * bump(clock, random.normal(14, 1), 3.5)
        shape = np.where(weekend, free, working) + 0.03
        level = np.exp(np.cumsum(random.normal(0, 0.02, len(hours))) * 0.5 + random.normal(4.5, 0.6))
        mean = level * shape * np.where(rain > 0, random.uniform(0.4, 0.7), 1.0)
        found.append(random.poisson(mean * random.gamma(25, 1 / 25, len(hours))))
    return np.stack(found, 1)


def bump(clock: np.ndarray, hour: float, width: float) -> np.ndarray:
    """A bell about an hour of the day."""
    apart = (clock - hour + 12) % 24 - 12
    return np.exp(-((apart / width) ** 2) / 2)


if __name__ == "__main__":
    rows = [",".join(["ds", *(f"station-{place + 1:02}" for place in range(STATIONS))])]
    for hour, counts in enumerate(rides()):
        rows.append(",".join([f"{BEGIN + timedelta(hours=hour):%Y-%m-%d %H:%M}", *map(str, counts)]))
    Path(sys.argv[1]).write_bytes(lzma.compress(("\n".join(rows) + "\n").encode(), preset=9))
