"""Make up the tracks that come with everstep: a ball that bounces in a box, `everstep:balls.train` and `.test`.

Positions are those of `everstep.lab.synthetic.BouncingBalls`, from -0.7 to 0.7, at a speed of 0.1 a step, to three
decimals.

    python benchmarks/make_balls.py everstep/data/bundled
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

from everstep.lab.synthetic import BouncingBalls

SIZES = {"train": 240, "test": 60}
STEPS = 60


def rows(split: str) -> list[str]:
    """The lines of a file."""
    drawn = BouncingBalls(STEPS, size=None).batch(SIZES[split], seed=list(SIZES).index(split)).inputs
    return [
        "unique_id,step,x,y",
        *(
            f"b{number:03},{step},{x:.3f},{y:.3f}"
            for number, track in enumerate(drawn.tolist())
            for step, (x, y) in enumerate(track, 1)
        ),
    ]


if __name__ == "__main__":
    for name in SIZES:
        path = Path(sys.argv[1], f"balls.{name}.csv.xz")
        path.write_bytes(lzma.compress(("\n".join(rows(name)) + "\n").encode(), preset=9))
