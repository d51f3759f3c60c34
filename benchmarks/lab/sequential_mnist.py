"""Sequential and permuted MNIST, pixel by pixel: a network's accuracy after some minutes of training.

Trains on all but the last 5,000 training images, validates on those, keeps the weights of the best validation, and
looks at the 10,000 test images once, at the end. Gated cells start with time constants from 2 to 784 steps, and their
first epochs are of coarser images, which take little time (7 × 7 and 14 × 14 pixels, or when permuted as many of the
784). The rate falls along a cosine with the clock. A stopped run goes on by the same command.

    python benchmarks/lab/sequential_mnist.py --cell LSTM --minutes 30 --threads 2 --out runs/smnist [--permuted]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import everstep as es
from everstep.cli.common import prepare
from everstep.errors import EverstepError
from everstep.lab.synthetic import Predictor, objective
from everstep.lab.synthetic.mnist import PERMUTATION_SEED, PixelImages, evaluate, sequential_mnist
from everstep.learn import FitSettings, read_metrics
from everstep.learn.learner import Learner
from everstep.native.processor import name as cpu_name

HELD_OUT, PIXELS = 5000, 784
COARSE = (4, 4, 2, 2, 2, 2, 2)
"""Pixels of which one is made, in both directions, in the first epochs. Not of plain networks, whose sums grow with the
number of steps: what has learned from 49 may overflow on 784."""
LOST = 100.0
"""Nats that count for a validation that is not finite: after short sequences alone, long ones may overflow."""


def slow(cell: es.Cell, gate: str) -> es.Cell:
    """The gate that keeps starts at σ(b) = 1 − 1/τ, with time constants τ from 2 to 784 steps, evenly spread in log τ.

    Not `init_chrono`, which also closes the input gates: those then learn too little in half an hour.
    """
    times = torch.logspace(math.log10(2), math.log10(PIXELS), cell.output_size)
    es.init_bias(cell, gate, (times - 1).log())
    return cell


CELLS: dict[str, tuple[Callable[[int], es.Cell], float, tuple[int, ...]]] = {  # with a learning rate and `COARSE` each
    "LSTM": (lambda units: slow(es.LSTM(1, units), "f"), 5e-3, COARSE),
    "GRU": (lambda units: slow(es.GRU(1, units), "z"), 5e-3, COARSE),
    "IRNN": (lambda units: es.IRNN(1, units), 3e-4, ()),
    "RNN": (lambda units: es.RNN(1, units), 3e-4, ()),
}


def main() -> None:
    options = arguments()
    prepare()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    make, rate, coarse = CELLS[options.cell]
    how = {"permuted": options.permuted, "batch_size": options.batch, "seed": options.seed}
    train, valid = sequential_mnist("train", coarse=coarse, **how).parted(HELD_OUT)
    model = Predictor(make(options.hidden), train)
    settings = FitSettings(
        learning_rate=options.rate or rate,
        schedule="cosine",
        warmup_steps=100,
        clip_norm=1.0,
        max_minutes=options.minutes,
        checkpoint_minutes=2.0,
        precision="float32",
    )
    if options.time:
        print(json.dumps(timed(model, replace(train, coarse=()), settings, options.time)))
        return
    result = es.fit(
        model,
        objective,
        train,
        settings,
        seed=options.seed,
        out=options.out,
        validate=lambda m: finite(evaluate(m, valid)[0]),
        resume=(options.out / "checkpoints").exists(),
    )
    best, right = evaluate(model, valid)
    nats, accuracy = evaluate(model, sequential_mnist("test", **how))
    found = {
        **asked(options, settings.learning_rate, coarse),
        "minutes": result.seconds / 60,
        "epochs": result.epochs,
        "steps": result.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "valid_nats": best,
        "valid_accuracy": right,
        "test_nats": nats,
        "test_accuracy": accuracy,
    }
    print(json.dumps(found, indent=1))
    validations = [r for r in read_metrics(options.out / "metrics.jsonl") if "valid" in r]
    found["curve"] = [[r["epoch"], r["seconds"] / 60, r["valid"]] for r in validations]
    (options.out / "result.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def asked(options: argparse.Namespace, rate: float, coarse: tuple[int, ...]) -> dict[str, Any]:
    """What was asked for, and of which machine."""
    return {
        "cell": options.cell,
        "permuted": options.permuted,
        "permutation_seed": PERMUTATION_SEED if options.permuted else None,
        "hidden": options.hidden,
        "batch": options.batch,
        "rate": rate,
        "coarse": coarse,
        "seed": options.seed,
        "threads": options.threads,
        "cpu": cpu_name(),
    }


def finite(nats: float) -> float:
    return nats if math.isfinite(nats) else LOST


def timed(model: Predictor, train: PixelImages, settings: FitSettings, steps: int) -> dict[str, float]:
    """Seconds of a step after two that do not count, and of an epoch of such steps."""
    learner = Learner(model, objective, train, settings)
    for _ in range(2):
        learner.step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        learner.step()
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds)[len(seconds) // 2]
    return {"step_seconds": median, "least": min(seconds), "epoch_minutes": median * math.ceil(len(train)) / 60}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), default="LSTM")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--permuted", action="store_true")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, help="of AdamW; by default what suits the cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", type=int, metavar="STEPS", help="only time that many steps")
    parser.add_argument("--out", type=Path, default=Path("runs/smnist"))
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except EverstepError as error:
        raise SystemExit(f"sequential_mnist: {error}") from None
