"""Calendar features of each step: the time of the day, week and year as sine and cosine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.time_stamps import DAY, Frequency, Ints

_WEEK, _YEAR = 7 * DAY, 365.2425 * DAY
_MONDAY = 3 * DAY
"""Day 0 was a Thursday."""


def cycles(frequency: Frequency) -> tuple[str, ...]:
    """The calendar cycles of at least two steps of this frequency.

    >>> cycles(Frequency("microsecond", DAY))
    ('week', 'year')
    """
    if frequency.unit == "step":
        return ()
    if frequency.unit == "month":
        return ("year",) if frequency.every < 12 else ()
    lengths = {"day": DAY, "week": _WEEK, "year": _YEAR}
    every = DAY * frequency.every if frequency.unit == "business day" else frequency.every
    return tuple(name for name, length in lengths.items() if length >= 2 * every)


def calendar(frequency: Frequency, places: Ints) -> NDArray[np.float32]:
    """Sine and cosine of the phase of each step in each of the `cycles`, (N, 2 · cycles), float32.

    >>> calendar(Frequency("microsecond", DAY // 4), np.arange(4)).round(1)[:, :2].tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, -0.0]]
    """
    stamps = frequency.stamps(places).astype(np.float64)
    lengths = {"day": (DAY, 0.0), "week": (_WEEK, _MONDAY), "year": (_YEAR, 0.0)}
    found = []
    for name in cycles(frequency):
        length, shift = lengths[name]
        angle = 2 * np.pi * (((stamps + shift) / length) % 1.0)
        found += [np.sin(angle), np.cos(angle)]
    return np.stack(found, 1).astype(np.float32) if found else np.zeros((len(places), 0), np.float32)
