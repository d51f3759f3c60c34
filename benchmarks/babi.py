"""bAbI (Weston 2015): a memory network for each of the 20 tasks, with 1,000 training questions each.

A tenth of the questions is held out to choose the weights; the test questions are seen once. FOLDER/babi.json has all
figures; what is in it is not trained again.

    python benchmarks/babi.py --archive en.tar.gz --out FOLDER [--seeds 3] [--tasks 1,2,3] [KEY=VALUE …]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import everstep as es
from everstep.cli.common import prepare
from everstep.native.processor import name as cpu_name

PUBLISHED = {
    "MemN2N": (100, 83, 54, 98, 87, 92, 84, 86, 90, 78, 84, 100, 90, 93, 100, 44, 52, 88, 13, 100),
    "LSTM": (50, 20, 20, 61, 70, 48, 49, 45, 64, 44, 72, 74, 94, 27, 21, 23, 51, 52, 8, 91),
}
"""Test accuracy in %: another program's MemN2N, one model a task (README of domluna/memn2n), and Weston's LSTM."""


def files_of(archive: Path, folder: Path) -> dict[int, tuple[Path, Path, str]]:
    """Training and test file of each task, and its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    found = {}
    for train in folder.rglob("qa*_train.txt"):
        number, _, name = train.name.removesuffix("_train.txt").partition("_")
        found[int(number[2:])] = train, train.with_name(train.name.replace("_train", "_test")), name
    return dict(sorted(found.items()))


def main() -> None:
    options = arguments()
    prepare()
    path = options.out / "babi.json"
    files = files_of(options.archive, options.out / "data")
    found: dict[str, Any] = {"cpu": cpu_name(), "settings": options.settings, "runs": []}
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        if found["settings"] != options.settings:
            raise SystemExit(f"babi: {path} is of other settings; give another folder")
    for seed in range(1, options.seeds + 1):
        for number in options.tasks or files:
            if any((run["task"], run["seed"]) == (number, seed) for run in found["runs"]):
                continue
            train, test, name = files[number]
            began = time.process_time()
            keys = [f"data.train={train}", f"data.test={test}", f"seed={seed}", "train.threads=1", *options.settings]
            run = es.train("babi", options.out / "runs" / f"{number}-{seed}", lambda line: None, overrides=keys)
            seconds = time.process_time() - began
            valid, scored = run.evaluate("valid"), run.evaluate("test")
            record = {
                "task": number,
                "name": name,
                "seed": seed,
                "cpu_seconds": seconds,
                "accuracy": scored["accuracy"],
            }
            found["runs"].append({**record, "valid": valid["accuracy"], "valid_loss": valid["loss"]})
            print(f"{number} {name}, seed {seed}: {scored['accuracy']:.1%} ({seconds:.0f} CPU s)", flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    table(found)


def table(found: dict[str, Any]) -> None:
    """Print the accuracy of each task: the mean of all seeds, and that of the seed with the best validation."""
    print("| task | everstep, mean | best on validation | MemN2N | LSTM |\n|---|---|---|---|---|")
    means, bests = [], []
    for number in sorted({run["task"] for run in found["runs"]}):
        runs = [run for run in found["runs"] if run["task"] == number]
        means.append(100 * statistics.mean(run["accuracy"] for run in runs))
        bests.append(100 * max(runs, key=lambda run: (run["valid"], -run["valid_loss"]))["accuracy"])
        others = " | ".join(str(figures[number - 1]) for figures in PUBLISHED.values())
        print(f"| {number} {runs[0]['name']} | {means[-1]:.1f} | {bests[-1]:.1f} | {others} |")
    if len(means) == len(PUBLISHED["LSTM"]):
        others = " | ".join(f"{statistics.mean(figures):.1f}" for figures in PUBLISHED.values())
        print(f"| mean | {statistics.mean(means):.1f} | {statistics.mean(bests):.1f} | {others} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="en.tar.gz of bAbI v1.2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the recipe")
    return parser.parse_args()


if __name__ == "__main__":
    main()
