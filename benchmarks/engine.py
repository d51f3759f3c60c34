"""The compiled engine beside its rivals, in turns in one process: training steps and forward passes.

    python benchmarks/engine.py [--only grid,cells,ragged] [--quick] [--json FILE]

A training step is forward and backward to all parameters and inputs. Medians of at least 9 (3 where a step takes over 2 s).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import alternately, summary
from torch import Tensor, nn

import everstep as es
from everstep.tasks.card import cpu_name

GRID = [(t, b, h, h) for b in (1, 16, 64) for h in (64, 256, 1024) for t in (50, 500)]
EXTRA = [
    (100, 32, 256, 256),
    (35, 20, 650, 650),
    (784, 64, 1, 128),
    (256, 1, 256, 256),
    (200, 8, 128, 128),
    (400, 16, 64, 64),
]
"""(time, batch, input features, hidden features)"""
QUICK = [*EXTRA, (50, 1, 64, 64), (50, 16, 64, 64), (50, 64, 64, 64), (50, 1, 1024, 1024), (50, 16, 1024, 1024), (50, 64, 1024, 1024)]
KINDS: dict[str, tuple[Any, Any]] = {"LSTM": (es.LSTM, nn.LSTM), "GRU": (es.GRU, nn.GRU), "RNN": (es.RNN, nn.RNN)}


def rounds(*ways: Callable[[], object]) -> int:
    """9 calls of each, fewer where a call takes over 2 s, more where it takes less than 10 ms."""
    longest = 0.0
    for way in ways:
        way()
        start = time.perf_counter()
        way()
        longest = max(longest, time.perf_counter() - start)
    return 3 if longest > 2 else 9 if longest > 0.05 else 25 if longest > 0.005 else 101


def ratio(ways: dict[str, Callable[[], object]]) -> dict[str, Any]:
    """Every way's times, and the first's median over the others'."""
    seconds = alternately(ways, rounds(*ways.values()))
    found: dict[str, Any] = {name: summary(values) for name, values in seconds.items()}
    first = next(iter(found.values()))["median_ms"]
    found["ratio"] = {name: first / found[name]["median_ms"] for name in list(found)[1:]}
    return found


def train(run: Callable[[Tensor], Tensor], module: nn.Module, xs: Tensor) -> Callable[[], object]:
    wanted = [xs, *module.parameters()]
    weights = torch.randn(run(xs).shape)
    return lambda: torch.autograd.grad(run(xs), wanted, weights)


def forward(run: Callable[[Tensor], Tensor], xs: Tensor) -> Callable[[], object]:
    def one() -> None:
        with torch.no_grad():
            run(xs)

    return one


def grid(shapes: list[tuple[int, int, int, int]], kinds: list[str]) -> list[dict[str, Any]]:
    results = []
    for kind in kinds:
        for steps, batch, features, hidden in shapes:
            torch.manual_seed(0)
            make, rival = KINDS[kind]
            cell, module = make(features, hidden), rival(features, hidden, batch_first=True)
            xs = torch.randn(batch, steps, features, requires_grad=True)

            def ours(x: Tensor, cell: es.Cell = cell) -> Tensor:
                return es.scan(cell, x, backend="fused")[0]

            def theirs(x: Tensor, module: nn.Module = module) -> Tensor:
                return module(x)[0]

            found = {
                "kind": kind,
                "shape": (steps, batch, features, hidden),
                "train": ratio({"torch": train(theirs, module, xs), "fused": train(ours, cell, xs)}),
                "forward": ratio({"torch": forward(theirs, xs), "fused": forward(ours, xs)}),
            }
            results.append(found)
            gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
            flops = 6 * steps * batch * gates * hidden * (features + hidden)
            speed = flops / found["train"]["fused"]["median_ms"] / 1e6
            print(
                f"{kind:5} T{steps:<4} B{batch:<3} D{features:<5} H{hidden:<5}"
                f" train {found['train']['torch']['median_ms']:9.2f} ms / {found['train']['fused']['median_ms']:9.2f} ms"
                f" = {found['train']['ratio']['fused']:5.2f}   {speed:5.0f} GFLOP/s"
                f"   forward {found['forward']['torch']['median_ms']:9.2f} / {found['forward']['fused']['median_ms']:9.2f}"
                f" = {found['forward']['ratio']['fused']:5.2f}",
                flush=True,
            )
        for what in ("train", "forward"):
            mine = [r[what]["ratio"]["fused"] for r in results if r["kind"] == kind]
            mean = math.exp(sum(map(math.log, mine)) / len(mine))
            print(f"{kind:5} {what}: geometric mean {mean:.2f}, least {min(mine):.2f}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="grid")
    parser.add_argument("--kinds", default="LSTM,GRU,RNN")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    results: dict[str, Any] = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if "grid" in options.only:
        results["grid"] = grid(QUICK if options.quick else [*GRID, *EXTRA], options.kinds.split(","))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
