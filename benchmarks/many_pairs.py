"""Memory of translation training by the number of pairs: generated pairs, a small model, a few steps.

    python benchmarks/many_pairs.py [--pairs 2000 200000] [--json FILE]

Each number of pairs is trained twice in processes of their own, with an empty cache and then from its token files. Peak
memory is that of the process; growth is beside the first number, whose memory is that of the program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS, LONGEST = 500, 20
CHILD = """
import json, resource, sys, time
import everstep as es
start = time.perf_counter()
es.train("translate-own", sys.argv[1], lambda line: None, overrides=sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of this process alone, in kilobytes
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(peak / 1024, 1)}))
"""
SETTINGS = [
    "data.unit=words", f"data.max_size={WORDS}", "data.test=null", "data.source=en", "data.target=xx",
    "model.embedding_size=8", "model.hidden_size=8", "train.max_steps=20", "train.max_epochs=null",
    "train.patience=null", "train.threads=1",
]  # fmt: skip


def generate(prefix: Path, pairs: int, seed: int) -> int:
    """Write two files of random words of 1 to LONGEST a line, some at a time; returns their bytes."""
    random = np.random.default_rng(seed)
    with prefix.with_suffix(".en").open("w") as one, prefix.with_suffix(".xx").open("w") as other:
        for start in range(0, pairs, 1000):
            for length in random.integers(1, LONGEST + 1, min(1000, pairs - start)).tolist():
                row = random.integers(0, WORDS - 10, length).tolist()
                one.write(" ".join(f"w{word}" for word in row) + "\n")
                other.write(" ".join(f"v{word}" for word in reversed(row)) + "\n")
    return sum(prefix.with_suffix(suffix).stat().st_size for suffix in (".en", ".xx"))


def measured(folder: Path, train: Path, valid: Path, name: str) -> dict[str, Any]:
    """Peak memory and seconds of a training in a process of its own."""
    environment = os.environ | {"EVERSTEP_CACHE": str(folder / "cache"), "EVERSTEP_COMPILER": "none"}
    command = [sys.executable, "-c", CHILD, str(folder / name), f"data.train={train}", f"data.valid={valid}", *SETTINGS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Generate, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2000, 200_000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "valid", 200, 0)
        for pairs in asked.pairs:
            size = generate(folder / f"train{pairs}", pairs, pairs)
            for cache in ("empty", "filled"):
                start = time.perf_counter()
                found = measured(folder, folder / f"train{pairs}", folder / "valid", f"run-{pairs}-{cache}")
                rows.append({"pairs": pairs, "text_mb": round(size / 2**20, 1), "cache": cache, **found})
                grown = found["peak_mb"] - rows[0]["peak_mb"]
                print(
                    f"{pairs:>9,} pairs ({size / 2**20:.1f} MB), cache {cache}: peak {found['peak_mb']:.0f} MB "
                    f"({grown:+.1f}), {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
