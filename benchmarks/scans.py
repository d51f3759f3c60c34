"""The backends of `scan` beside one another and beside torch.nn: time of a training step, and the error.

For each shape, forward and backward to all parameters and inputs, in turns in one process. The error is the largest
difference of outputs and gradients from the float64 reference loop, relative to its largest value.

    python benchmarks/scans.py [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from timing import alternately, summary
from torch import Tensor

import everstep as es
from everstep.cli.common import prepare as tune_malloc
from everstep.scanning import BACKENDS
from everstep.tasks.card import cpu_name

SHAPES = [
    (2, 1, 64),
    (4, 16, 64),
    (16, 16, 64),
    (128, 16, 64),
    (1024, 16, 64),
    (64, 32, 256),
    (256, 1, 256),
    (35, 20, 650),
]
"""(time, batch, features)"""
CELLS = {"LSTM": es.LSTM, "GRU": es.GRU, "RNN": es.RNN, "MinGRU": es.MinGRU, "GRUBefore": es.GRUBefore}
MODULES = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}


def step(run: Callable[[Tensor], Tensor], module: torch.nn.Module, xs: Tensor) -> Callable[[], list[Tensor]]:
    wanted = [xs, *module.parameters()]

    def one() -> list[Tensor]:
        ys = run(xs)
        return [ys.detach(), *torch.autograd.grad(ys.sum(), wanted)]

    return one


def error(got: list[Tensor], want: list[Tensor]) -> float:
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(got, want, strict=True)
    )


def measure(name: str, time: int, batch: int, size: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    cell = CELLS[name](size, size)
    xs = torch.randn(batch, time, size, requires_grad=True)
    able = [b for b, backend in BACKENDS.items() if backend.refuses(cell, xs, None, None) is None]
    ways = {b: step(lambda x, b=b: es.scan(cell, x, backend=b)[0], cell, xs) for b in able}
    if name in MODULES:
        module = es.to_torch(cell)
        ways["torch.nn"] = step(lambda x: module(x)[0], module, xs)
    exact = copy.deepcopy(cell).double()
    doubled = xs.detach().double().requires_grad_()
    want = step(lambda x: es.scan(exact, x, backend="reference")[0], exact, doubled)()
    errors = {way: error(run(), want) for way, run in ways.items()}
    times = {way: summary(seconds) for way, seconds in alternately(ways, rounds, 1).items()}
    chosen = es.explain(cell, xs).backend
    return {"cell": name, "shape": [time, batch, size], "chosen": chosen, "times": times, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    tune_malloc()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; ms a step, (error)")
    rows = []
    for name in CELLS:
        for time, batch, size in SHAPES:
            row = measure(name, time, batch, size, options.rounds)
            rows.append(row)
            told = "  ".join(f"{w} {t['median_ms']:.2f} ({row['errors'][w]:.0e})" for w, t in row["times"].items())
            print(f"{name:9} T {time:5} B {batch:3} H {size:4}  auto: {row['chosen']:9}  {told}", flush=True)
    if options.json:
        machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
