"""Shortcuts through time: the adding problem by a tanh network that also sees, or only sees, what it was d steps ago.

The error on held-out sequences against d. At d = 1, "beside" is Elman's network, whose recurrent matrix starts
orthogonal; the shortcut's does so too, and the matrix beside it starts at 0. "Instead" has a second layer, which joins
the d sequences of the first: without the step before, they never meet. What was tried is in FOLDER/skips.json and not
tried again.

    python benchmarks/lab/skips.py --lag 50 --steps 9000 --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import everstep as es
from everstep.cli.common import prepare
from everstep.lab.remedies import Remedy
from everstep.lab.remedy_trials import Experiment, Trial, examine
from everstep.look.curves import TRAINING, VALIDATION
from everstep.native.processor import name as cpu_name

WAYS = {"beside": "d steps ago beside one step ago", "instead": "d steps ago instead of one step ago"}


def remedy(way: str, d: int) -> Remedy:
    """The network; at d = 1 and "beside" Elman's."""

    def beside(features: int, units: int, lag: int) -> es.Cell:
        if d == 1:
            return orthogonal(features, units)
        cell = es.RNN(features + units, units)  # it reads x_t and h_{t-d}
        with torch.no_grad():
            cell.weight_ih[:, features:].copy_(torch.nn.init.orthogonal_(torch.empty(units, units)))
            cell.weight_hh.zero_()
        return es.TimeSkip(cell, d, beside=True)

    def instead(features: int, units: int, lag: int) -> es.Cell:
        return es.Stack(es.TimeSkip(orthogonal(features, units), d), orthogonal(units, units))

    return Remedy(f"{way} {d}", WAYS[way], beside if way == "beside" else instead)


def orthogonal(features: int, units: int) -> es.RNN:
    cell = es.RNN(features, units)
    es.init_orthogonal(cell)
    return cell


def main() -> None:
    options = arguments()
    prepare()
    experiment = Experiment("adding", (options.lag,), hidden=options.hidden, batch=options.batch, steps=options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "skips.json"
    names = ("lag", "steps", "hidden", "batch", "rate", "seeds")
    settings = {name: getattr(options, name) for name in names} | {"cpu": cpu_name()}
    found: dict[str, Any] = {"settings": settings, "runs": []}
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        if found["settings"] != settings:
            raise SystemExit(f"skips: {path} is of other settings; give another folder")
    for way in WAYS:
        for d in map(int, options.d.split(",")):
            for seed in range(options.seeds):
                if any((r["way"], r["d"], r["seed"]) == (way, d, seed) for r in found["runs"]):
                    continue
                tried = remedy(way, d)
                record = examine(tried, Trial(experiment, tried.name, options.lag, options.rate, seed, math.inf))
                print(f"{way} {d} seed {seed}: {record['outcome']}, {record['relative']:.3f}, {record['steps']} steps")
                found["runs"].append({"way": way, "d": d, **record})
                path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    draw(found, options.out / "skips.png")


def draw(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for way, colour, marker in zip(WAYS, (TRAINING, VALIDATION), "os", strict=True):
        places = sorted({run["d"] for run in found["runs"] if run["way"] == way})
        if not places:
            continue
        runs = [[r["relative"] for r in found["runs"] if (r["way"], r["d"]) == (way, d)] for d in places]
        middle = [sorted(values)[len(values) // 2] for values in runs]
        axes.plot(places, middle, color=colour, marker=marker, markersize=9, linewidth=2.2, label=WAYS[way])
    axes.axhline(0.06, color="0.4", linestyle=":", linewidth=1.5)
    axes.annotate("solved below", (1, 0.06), xytext=(0, -16), textcoords="offset points", fontsize=13, color="0.3")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"d (steps); the lag is {found['settings']['lag']}", fontsize=14)
    axes.set_ylabel("held-out loss ÷ loss of ignoring the input", fontsize=14)
    everywhere = sorted({run["d"] for run in found["runs"]})
    axes.set_xticks(everywhere, map(str, everywhere))
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=min(0.02, 0.8 * min(run["relative"] for run in found["runs"])))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=13, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    figure.savefig(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lag", type=int, default=50)
    parser.add_argument("--d", default="1,2,5,10,25", help="steps back, with commas between")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
