"""Balls that bounce in a box, as video frames or coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from everstep.lab.synthetic.problem import Array, Drawn, Kind, Problem, check_whole

_SPEED = 0.05  # initial speed of every ball, in box widths per step
_SUBSTEPS = 4


@dataclass(frozen=True)
class BouncingBalls(Problem):
    """The next frame of a video of balls in a box (after Sutskever, Hinton & Taylor 2009).

    Balls of equal mass move in straight lines and bounce elastically off walls and each other. The box is 1 × 1; balls
    start at random positions in random directions, at 0.05 per step. A frame has size × size pixels with values max
    over balls of exp(−(d/r)⁸), d the distance from the ball's centre and r the radius. A single frame does not show
    velocities.

    >>> BouncingBalls(steps=10, size=8).batch(2).inputs.shape
    torch.Size([2, 10, 64])

    Args:
        steps: T.
        balls: number of balls.
        size: pixels per side; None gives the coordinates (x, y of each ball, from −1 to 1) instead of frames.
        radius: r.

    Raises:
        ValueError: a size is below 1, or the balls do not fit.
    """

    steps: int
    balls: int = 1
    size: int | None = 16
    radius: float = 0.15
    kind: ClassVar[Kind] = "number"

    def __post_init__(self) -> None:
        check_whole(self, "steps", self.steps, 1)
        check_whole(self, "balls", self.balls, 1)
        if self.size is not None:
            check_whole(self, "size", self.size, 1)
        if not (self.radius > 0 and 2 * self.radius < 1 and self.balls * (2 * self.radius) ** 2 <= 0.5):
            raise ValueError(
                f"BouncingBalls: {self.balls} balls of radius {self.radius} are too many for a box of 1 × 1; "
                "their squares should cover half of it at most"
            )

    @property
    def input_size(self) -> int:
        return 2 * self.balls if self.size is None else self.size**2

    @property
    def outputs(self) -> int:
        return self.input_size

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        """See the class."""
        places = self._places(rows, random)
        angles = random.uniform(0, 2 * np.pi, (rows, self.balls))
        speeds = _SPEED * np.stack([np.cos(angles), np.sin(angles)], -1)
        film = np.empty((rows, self.steps + 1, self.balls, 2))
        for t in range(self.steps + 1):
            film[:, t] = places
            for _ in range(_SUBSTEPS):
                places = places + speeds / _SUBSTEPS
                self._bounce(places, speeds)
        seen = (2 * film - 1).reshape(rows, self.steps + 1, -1) if self.size is None else self._frames(film)
        return Drawn(seen[:, :-1], seen[:, 1:])

    def _places(self, rows: int, random: np.random.Generator) -> Array:
        """Random initial positions, within the walls and without overlap."""
        low, high = self.radius, 1 - self.radius
        places = random.uniform(low, high, (rows, self.balls, 2))
        while len(close := np.flatnonzero(self._touching(places))):
            places[close] = random.uniform(low, high, (len(close), self.balls, 2))
        return places

    def _touching(self, places: Array) -> Array:
        touching = np.zeros(len(places), bool)
        for a, b in combinations(range(self.balls), 2):
            touching |= np.linalg.norm(places[:, a] - places[:, b], axis=-1) < 2 * self.radius
        return touching

    def _bounce(self, places: Array, speeds: Array) -> None:
        """Update, in place, the speeds of balls that touch and approach, and move balls out of walls."""
        for a, b in combinations(range(self.balls), 2):
            apart = places[:, a] - places[:, b]
            distance = np.linalg.norm(apart, axis=-1, keepdims=True)
            normal = apart / np.maximum(distance, 1e-12)
            closing = ((speeds[:, a] - speeds[:, b]) * normal).sum(-1, keepdims=True)
            exchanged = np.where((distance < 2 * self.radius) & (closing < 0), closing, 0) * normal
            speeds[:, a] -= exchanged
            speeds[:, b] += exchanged
        low, high = self.radius, 1 - self.radius
        speeds[...] = np.where(places < low, np.abs(speeds), np.where(places > high, -np.abs(speeds), speeds))
        np.copyto(places, np.where(places < low, 2 * low - places, np.where(places > high, 2 * high - places, places)))

    def _frames(self, film: Array) -> Array:
        """Pixels (rows, frames, size²) in [0, 1], from centres (rows, frames, balls, 2)."""
        assert self.size is not None
        pixels = (np.arange(self.size) + 0.5) / self.size
        x, y = film[..., 0, None, None], film[..., 1, None, None]
        squared = (pixels - x) ** 2 + (pixels[:, None] - y) ** 2
        shown = np.exp(-((squared / self.radius**2) ** 4)).max(2)
        frames: Array = shown.reshape(*shown.shape[:2], -1).astype(np.float32)
        return frames
