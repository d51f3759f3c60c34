"""`es.accelerate` on the model of PyTorch's `word_language_model` example, beside the model untouched.

Both take the same steps from the same weights, in turns: the example's loop on Penn Treebank's words, without dropout,
whose masks would differ. Printed: the largest difference of their losses, and words per second.

    python benchmarks/accelerate.py [--steps 100] [--rate 1] [--double] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lm import BATCH, LAYERS, SIZE, WINDOW, Example, text
from torch import Tensor, nn

import everstep as es
from everstep.cli.common import prepare as tune_malloc
from everstep.native.processor import name as cpu_name


def stepper(model: nn.Module, columns: Tensor, rate: float) -> Callable[[int], float]:
    """A step of the example's loop on the window of that number: its loss."""
    zeros = torch.zeros(LAYERS, BATCH, SIZE, dtype=next(model.parameters()).dtype)
    hidden = (zeros, zeros)
    criterion = nn.NLLLoss()

    def step(number: int) -> float:
        nonlocal hidden
        place = number * WINDOW % (len(columns) - WINDOW - 1)
        data, target = columns[place : place + WINDOW], columns[place + 1 : place + 1 + WINDOW].reshape(-1)
        model.zero_grad()
        output, hidden = model(data, tuple(leaf.detach() for leaf in hidden))
        loss = criterion(output, target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad, alpha=-rate)
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.steps < 3:
        parser.error(f"--steps should be at least 3, of which two are not timed, but is {options.steps}")
    tune_malloc()  # for both: they share the process
    corpus, tokenizer = text()
    tokens = torch.from_numpy(corpus.tokens.astype("int64"))
    columns = tokens[: len(tokens) // BATCH * BATCH].view(BATCH, -1).t().contiguous()
    torch.manual_seed(0)
    plain = Example(tokenizer.vocab_size)
    for module in plain.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    plain.drop.p = 0.0
    plain = plain.double() if options.double else plain
    ways = {"untouched": plain, "accelerated": es.accelerate(copy.deepcopy(plain))}
    steps = {name: stepper(model, columns, options.rate) for name, model in ways.items()}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.steps):
        for name, step in steps.items():
            start = time.perf_counter()
            losses[name].append(step(number))
            seconds[name].append(time.perf_counter() - start)
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    speeds = {name: BATCH * WINDOW / statistics.median(times[2:]) for name, times in seconds.items()}
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{options.steps} steps at rate {options.rate:g}: losses {losses['untouched'][0]:.4f} to ", end="")
    print(f"{losses['untouched'][-1]:.4f} nats, at most {apart:.1e} apart; words per second ", end="")
    print(", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items()), end="")
    print(f" ({speeds['accelerated'] / speeds['untouched']:.2f}x)")
    if options.json:
        result = {"steps": options.steps, "rate": options.rate, "apart": apart, "words_per_second": speeds}
        options.json.write_text(json.dumps({"cpu": cpu_name(), **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
