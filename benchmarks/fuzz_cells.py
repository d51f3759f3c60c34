"""Random cells on the compiled engine against the reference, until the time is up.

    python benchmarks/fuzz_cells.py [--cells 5000] [--seed 0] [--minutes 60]

Of a cell that differs (or breaks the engine) it prints the seed and the smallest source that still fails, and goes on.
Stopped, it says the seed to go on from; every cell depends on its seed alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from random_cells import Recipe, differences, recipe, refused, smallest

SIZES = ((3, 4), (1, 7), (5, 2), (66, 3))
"""(batch, time)"""


def trouble(made: Recipe, seed: int) -> list[str]:
    """What is wrong with this cell: differences, or the error that stopped it."""
    try:
        cell = made.cell()
        if refused(cell) is not None:
            return []
        for number, (batch, time_) in enumerate(SIZES):
            dtype = torch.float32 if seed % 4 == 0 and number == 0 else torch.float64
            if found := differences(cell, dtype, 10 * seed + number, batch, time_):
                return [f"{dtype}, batch {batch}, time {time_}", *found]
    except Exception as error:  # whatever it is, it is what is looked for
        return [f"{type(error).__name__}: {error}"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the first cell")
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    start, reasons, failed = time.monotonic(), Counter[str](), 0
    seed = given.seed
    while seed < given.seed + given.cells and time.monotonic() - start < 60 * given.minutes:
        made = recipe(seed)
        found = trouble(made, seed)
        if found:
            failed += 1
            small = smallest(made, lambda other, s=seed: bool(trouble(other, s)))
            print(f"\nseed {seed}:", *found, "", small.source(), sep="\n")
        elif (why := refused(made.cell())) is not None:
            reasons[why.split(" (")[0]] += 1
        seed += 1
        if (seed - given.seed) % 25 == 0:
            minutes = (time.monotonic() - start) / 60
            print(
                f"{seed - given.seed} cells, {reasons.total()} refused, {failed} failed, {minutes:.1f} min", flush=True
            )
    print(f"{seed - given.seed} cells, {failed} failed, {reasons.total()} refused; go on with --seed {seed}")
    for why, count in reasons.most_common():
        print(f"  {count} refused: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
