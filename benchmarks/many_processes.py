"""Tokens a second of a language model in several processes of one thread, beside one process of as many threads.

    python benchmarks/many_processes.py [--processes 2] [--rounds 3] [--steps 60] [--json FILE]

Both train the same recipe on the same batches, in turns; the speed is that of the steps after the first tenth, in
`metrics.jsonl`. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from everstep.learn import read_metrics
from everstep.native.processor import name as cpu_name

SIZES = {"small": (128, 32), "medium": (512, 32), "wide batch": (256, 128)}
"""Units and lanes."""


def speed(out: Path, processes: int, threads: int, units: int, lanes: int, steps: int) -> float:
    """Tokens a second of one training."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    changes = {
        "model.hidden_size": units,
        "train.batch_size": lanes,
        "train.max_steps": steps,
        "train.threads": threads,
        "train.validate_every": 10 * steps,
        "train.log_every_seconds": 0,
        "train.precision": "float32",
        "data.train": "everstep:shakespeare",
        "data.valid_fraction": 0.005,
    }
    words = ["train", "text-chars", *(f"{key}={value}" for key, value in changes.items()), "--out", str(out)]
    done = subprocess.run([sys.executable, *launcher, "-m", "everstep", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    records = [record for record in read_metrics(out / "metrics.jsonl") if "loss" in record]
    begin = records[len(records) // 10]
    end = records[-1]
    return float((end["tokens"] - begin["tokens"]) / (end["seconds"] - begin["seconds"]))


def main() -> None:
    """Measure all sizes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    many, found = asked.processes, {}
    print(f"{cpu_name()}\n{'':12}  {'1 process':>12}  {f'{many} processes':>12}  ratio")
    for label, (units, lanes) in SIZES.items():
        speeds: dict[int, list[float]] = {1: [], many: []}
        for _ in range(asked.rounds):
            for processes in speeds:
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / "run"
                    speeds[processes].append(speed(out, processes, many // processes, units, lanes, asked.steps))
        one, several = (statistics.median(speeds[processes]) for processes in (1, many))
        found[label] = {"units": units, "lanes": lanes, "one": one, "several": several, "ratio": several / one}
        print(f"{label:12}  {one:12,.0f}  {several:12,.0f}  {several / one:.2f}")
    if asked.json:
        asked.json.write_text(json.dumps({"processor": cpu_name(), "processes": many, "sizes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
