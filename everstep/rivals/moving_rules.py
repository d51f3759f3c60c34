"""What tracks go on like by simple rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rules(seen: Floats, horizon: int) -> dict[str, Floats]:
    """Positions ahead (N, H, D) by rule, from those seen (N, W, D), W ≥ 2.

    - *constant velocity*: the last difference, again and again.
    - *standing still*: the last position.
    - *mirrored walls*: constant velocity, reflected at the least and the largest number of each column in all that is
      seen; what one can do who knows that there are walls, but not where.

    Example:
        >>> found = rules(np.array([[[0.0], [1.0]], [[4.0], [2.0]]]), 3)
        >>> found["constant velocity"][..., 0].tolist(), found["mirrored walls"][1, :, 0].tolist()
        ([[2.0, 3.0, 4.0], [0.0, -2.0, -4.0]], [0.0, 2.0, 4.0])
    """
    last, velocity = seen[:, -1:], seen[:, -1:] - seen[:, -2:-1]
    times = np.arange(1, horizon + 1)[:, None]
    straight = last + velocity * times
    low, high = seen.min((0, 1)), seen.max((0, 1))
    width = np.where(high > low, high - low, 1.0)
    folded = np.mod(straight - low, 2 * width)
    return {
        "constant velocity": straight,
        "standing still": np.repeat(last, horizon, axis=1),
        "mirrored walls": low + np.minimum(folded, 2 * width - folded),
    }
