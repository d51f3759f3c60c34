"""From which size on bfloat16 pays: CPU time of a training step of a language model in float32 and under autocast.

    python benchmarks/precision.py [--json FILE] [--rounds N]

One thread; both in turns in one process, the least of several turns each. CPU time is not the wall's: what else the
machine does hardly counts. `everstep.learn.precision.FEWEST` follows from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from everstep.learn.precision import multiplied
from everstep.native.processor import has_bfloat16
from everstep.native.processor import name as cpu_name
from everstep.networks.token_model import TokenModel, TokenModelSection

SHAPES = [
    (cell, hidden, 65, rows, steps)
    for cell, sizes in (("LSTM", (8, 16, 32, 64, 128, 256)), ("GRU", (16, 32, 64)), ("SRU", (32, 128)))
    for hidden in sizes
    for rows, steps in ((4, 16), (16, 32), (32, 64))
]


def stepper(cell: str, hidden: int, vocabulary: int, rows: int, steps: int) -> tuple[int, Callable[[bool], None]]:
    """The weights that are multiplied, and a training step, in bfloat16 or not."""
    model = TokenModel(vocabulary, TokenModelSection(cell=cell, hidden_size=hidden, embedding_size=hidden))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    tokens, targets = torch.randint(vocabulary, (2, rows, steps))

    def step(low: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            loss = model.head.loss(model(tokens)[0], targets).sum() / targets.numel()
        loss.backward()
        optimizer.step()

    return multiplied(model), step


def measured(step: Callable[[bool], None], rounds: int) -> dict[bool, float]:
    """CPU milliseconds of a step, by whether it is in bfloat16."""
    inner, least = 5, {False: float("inf"), True: float("inf")}
    for low in (False, True, False, True):
        step(low)
    for _ in range(rounds):
        for low in least:
            start = time.process_time()
            for _ in range(inner):
                step(low)
            least[low] = min(least[low], 1000 * (time.process_time() - start) / inner)
    return least


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, bfloat16 {'native' if has_bfloat16() else 'emulated'}; float32's time over bfloat16's")
    rows = []
    for shape in SHAPES:
        weights, step = stepper(*shape)
        times = measured(step, options.rounds)
        ratio = times[False] / times[True]
        rows.append({"shape": shape, "weights": weights, "float32_ms": times[False], "bfloat16_ms": times[True]})
        cell, hidden, _, batch, length = shape
        print(f"{cell:5} {hidden:4} units, {batch:3} × {length:3}: {weights:8,} weights, {ratio:.2f}", flush=True)
    if options.json:
        result = {"cpu": cpu_name(), "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
