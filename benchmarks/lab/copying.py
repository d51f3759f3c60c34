"""Copying: machines with a memory of places, and an LSTM without one, on sequences longer than those they learned from.

All learn from sequences of 1 to 20 vectors of 8 bits (`Copying`), and copy sequences up to 120 long, with 128 places.
With --pytorch-ntm, the folder of a checkout of loudinthecloud/pytorch-ntm, a training step of that program's machine
is timed beside ours, alternately in this process.

    python benchmarks/lab/copying.py --out FOLDER [--steps 5000] [--seeds 3] [--pytorch-ntm FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import everstep as es
from everstep.cli.common import prepare
from everstep.lab.synthetic import Copying, Predictor, measure, objective
from everstep.look.memory_heads import draw_heads, head_weights
from everstep.native.processor import name as cpu_name

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import alternately

LONGEST, BITS, PLACES, WIDTH, UNITS, BATCH = 20, 8, 128, 20, 100, 16
LENGTHS = (10, 20, 40, 60, 80, 100, 120)
SHOWN = 60  # vectors of the drawn sequence
MACHINES: dict[str, tuple[Callable[[], es.Cell], float]] = {
    "NTM": (lambda: es.NTM(es.LSTM(BITS + 1 + WIDTH, UNITS), PLACES, WIDTH), 0.01),
    "DNC": (lambda: es.DNC(es.LSTM(BITS + 1 + WIDTH, UNITS), 2 * LONGEST, WIDTH), 0.01),
    "LSTM": (lambda: es.Stack(es.LSTM(BITS + 1, 256), es.LSTM(256, 256)), 0.002),
}
"""What is trained, and at which learning rate."""


def trained(name: str, seed: int, options: argparse.Namespace) -> tuple[Predictor, dict[str, Any]]:
    """A trained machine, and what was measured."""
    torch.manual_seed(seed)
    make, rate = MACHINES[name]
    model = Predictor(make(), Copying(LONGEST, bits=BITS))
    settings = es.FitSettings(max_steps=options.steps, learning_rate=rate, batch_size=BATCH, clip_norm=10.0, threads=1)
    began = time.process_time()
    out = options.out / f"{name}-{seed}"
    es.fit(model, objective, model.problem.stream(BATCH, seed), settings, out=out, seed=seed)
    seconds = time.process_time() - began
    if isinstance(model.layer, es.DNC):
        model.layer.places = PLACES
    errors = {}
    for length in LENGTHS:
        model.problem = Copying(length, length, BITS)
        errors[str(length)] = measure(model, 200, seed=1, chunk=50).error
    return model, {"machine": name, "seed": seed, "cpu_seconds": seconds, "wrong_bits": errors}


def draw(model: Predictor, path: Path) -> None:
    """The heads of a machine that copies SHOWN vectors."""
    batch = Copying(SHOWN, SHOWN, BITS).batch(1, held_out=True)
    with torch.no_grad():
        answers = model.answer(model.layer(batch.inputs)[0]).sigmoid()[0]
    answers[:-SHOWN] = 0
    shown = {"inputs": batch.inputs[0].numpy(), "outputs": answers.numpy()}
    draw_heads(head_weights(model.layer, batch.inputs), shown, path)


def beside(folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time of a training step: ours, ours step by step, and pytorch-ntm's."""
    sys.path.insert(0, str(folder))
    from ntm.aio import EncapsulatedNTM  # type: ignore[import-not-found]

    torch.manual_seed(0)
    problem = Copying(LONGEST, LONGEST, BITS)
    batch, model = problem.batch(BATCH), Predictor(MACHINES["NTM"][0](), problem)
    theirs = EncapsulatedNTM(BITS + 1, BITS, UNITS, 1, 1, PLACES, WIDTH)

    def ours(backend: str) -> None:
        ys, _ = es.scan(model.layer, batch.inputs, backend=backend)
        loss = F.binary_cross_entropy_with_logits(model.answer(ys[:, -LONGEST:]), batch.targets)
        torch.autograd.grad(loss, list(model.parameters()))

    def rival() -> None:
        theirs.init_sequence(BATCH)
        inputs = batch.inputs.transpose(0, 1)
        for x in inputs[: LONGEST + 1]:
            theirs(x)
        outputs = torch.stack([theirs()[0] for _ in range(LONGEST)])
        loss = nn.BCELoss()(outputs, batch.targets.transpose(0, 1))
        torch.autograd.grad(loss, [p for p in theirs.parameters() if p.requires_grad], allow_unused=True)

    ways: dict[str, Callable[[], object]] = {
        "everstep": lambda: ours("auto"),
        "everstep, step by step": lambda: ours("reference"),
        "pytorch-ntm": rival,
    }
    torch.set_num_threads(1)
    found = alternately(ways, rounds, clock=time.process_time)
    return {name: 1000 * statistics.median(seconds) for name, seconds in found.items()}


def main() -> None:
    options = arguments()
    prepare()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"cpu": cpu_name(), "torch": torch.__version__, "steps": options.steps, "runs": []}
    for name in MACHINES:
        for seed in range(1, options.seeds + 1):
            model, record = trained(name, seed, options)
            found["runs"].append(record)
            wrong = ", ".join(f"{length}: {100 * error:.3f}" for length, error in record["wrong_bits"].items())
            print(f"{name}, seed {seed}: {record['cpu_seconds']:.0f} CPU s; % of bits wrong at {wrong}", flush=True)
            if seed == 1 and isinstance(model.layer, es.NTM | es.DNC):
                draw(model, options.out / f"{name.lower()}.png")
    if options.pytorch_ntm:
        found["step_ms"] = beside(options.pytorch_ntm, options.rounds)
        print({name: round(ms, 1) for name, ms in found["step_ms"].items()})
    (options.out / "copying.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pytorch-ntm", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
