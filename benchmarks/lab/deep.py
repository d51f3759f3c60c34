"""Eight layers: a stack with shortcuts past every layer learns where the plain one does not.

Both read the characters of the bundled text; their layers, units, first weights, batches and learning rate are equal.
The curve is of held-out text, beside the entropy of single characters: what a model reaches that looks at nothing.

    python benchmarks/lab/deep.py [--steps 1500] [--layers 8] [--cell LSTM] --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure

import everstep as es
from everstep.cli.common import prepare
from everstep.data import expand, read_blocks
from everstep.errors import Diverged
from everstep.lab.synthetic import Predictor, Problem, Sequences, measure, objective
from everstep.lab.synthetic.problem import Drawn, Kind, one_hot
from everstep.learn import FitSettings
from everstep.learn.learner import Learner
from everstep.look.curves import TRAINING, VALIDATION
from everstep.native.processor import name as cpu_name

CELLS: dict[str, Callable[[int, int], es.Cell]] = {"LSTM": es.LSTM, "GRU": es.GRU, "RNN": es.RNN}
HELD_OUT = 0.1
KINDS = ("plain", "residual")


@dataclass(frozen=True, eq=False)
class Characters(Problem):
    """Windows of a text at random places, each character predicting the next; held out is its last tenth."""

    symbols: np.ndarray
    steps: int
    kind: ClassVar[Kind] = "class"

    @property
    def input_size(self) -> int:
        return int(self.symbols.max()) + 1

    @property
    def outputs(self) -> int:
        return self.input_size

    @property
    def baseline(self) -> float:
        shares = np.bincount(self.symbols) / len(self.symbols)
        return float(-(shares * np.log(shares)).sum())

    def batch(self, rows: int, *, seed: int = 0, epoch: int = 0, index: int = 0, held_out: bool = False) -> Sequences:
        cut = int(len(self.symbols) * (1 - HELD_OUT))
        part = Windows(self.symbols[cut:] if held_out else self.symbols[:cut], self.steps, self.input_size)
        return part.batch(rows, seed=seed, epoch=epoch, index=index, held_out=held_out)


@dataclass(frozen=True, eq=False)
class Windows(Problem):
    """Windows of a whole array of symbols."""

    symbols: np.ndarray
    steps: int
    size: int
    kind: ClassVar[Kind] = "class"

    def draw(self, rows: int, random: np.random.Generator) -> Drawn:
        starts = random.integers(0, len(self.symbols) - self.steps, (rows, 1))
        found = self.symbols[starts + np.arange(self.steps + 1)]
        return Drawn(one_hot(found[:, :-1], self.size), found[:, 1:])


def main() -> None:
    options = arguments()
    prepare()
    torch.set_num_threads(options.threads)
    text = "".join(read_blocks(expand("everstep:shakespeare")))
    problem = Characters(np.unique(list(text), return_inverse=True)[1], options.window)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "deep.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {"settings": settings_of(options), "runs": []}
    if found["settings"] != settings_of(options):
        raise SystemExit(f"deep: {path} is of other settings; give another folder")
    for seed in range(options.seeds):
        for kind in KINDS:
            if not any((run["kind"], run["seed"]) == (kind, seed) for run in found["runs"]):
                found["runs"].append(trained(problem, kind, seed, options))
                path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    draw(found, problem.baseline, options.out / "deep.png")
    for run in found["runs"]:
        print(f"{run['kind']:9} seed {run['seed']}: {run['curve'][-1][1]:.3f} bits, {run['seconds']:.0f} s")
    print(f"characters alone: {problem.baseline / math.log(2):.3f} bits; {options.out / 'deep.png'}")


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    names = ("cell", "layers", "hidden", "window", "batch", "rate", "steps")
    return {name: getattr(options, name) for name in names} | {"cpu": cpu_name()}


def trained(problem: Problem, kind: str, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """One stack's curve: (step, bits per character of held-out text)."""
    torch.manual_seed(seed)
    make, units = CELLS[options.cell], options.hidden
    cells = [make(problem.input_size if layer == 0 else units, units) for layer in range(options.layers)]
    upper = [es.Residual(cell) if kind == "residual" else cell for cell in cells[1:]]
    model = Predictor(es.Stack(cells[0], *upper), problem)
    how = FitSettings(max_steps=options.steps, learning_rate=options.rate, schedule="constant", precision="float32")
    learner = Learner(model, objective, problem.stream(options.batch, seed), how)
    curve, started = [], time.monotonic()
    try:
        for step in range(options.steps + 1):
            if step % options.every == 0 or step == options.steps:
                curve.append([step, measure(model, 200).loss / math.log(2)])
                print(f"{kind} seed {seed} step {step}: {curve[-1][1]:.3f} bits", flush=True)
            if step < options.steps:
                learner.step()
    except Diverged as error:
        print(error)
    return {"kind": kind, "seed": seed, "curve": curve, "seconds": time.monotonic() - started}


def draw(found: dict, baseline: float, path: Path) -> None:
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    layers, cell = found["settings"]["layers"], found["settings"]["cell"]
    for kind, colour, dash in zip(KINDS, (VALIDATION, TRAINING), ("--", "-"), strict=True):
        for number, run in enumerate(run for run in found["runs"] if run["kind"] == kind):
            label = f"{layers} layers of {cell}, {kind}" if number == 0 else None
            axes.plot(*zip(*run["curve"], strict=True), color=colour, linestyle=dash, linewidth=2.2, label=label)
    axes.axhline(baseline / math.log(2), color="0.4", linewidth=1.5, linestyle=":")
    axes.annotate(
        "single characters: nothing is remembered",
        (1, baseline / math.log(2)),
        xycoords=("axes fraction", "data"),
        xytext=(-6, -20),
        textcoords="offset points",
        ha="right",
        fontsize=13,
        color="0.3",
    )
    axes.set_xlabel("optimizer steps", fontsize=14)
    axes.set_ylabel("held-out bits per character (lower is better)", fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=13, frameon=False, loc="lower left")
    figure.savefig(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), default="LSTM")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
