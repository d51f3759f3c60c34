"""`Categorical`'s training loss beside `F.linear` and `F.cross_entropy`: forward and backward, in turns in one process.

"padded" computes the logits of all steps, as most training loops do, of rows whose lengths are uniform in T/2 … T;
"packed" computes those of valid steps, and `F.cross_entropy` on them. "alone" is the loss by itself, from the logits of
valid steps to their gradient. Before they are timed, the gradients of all are
compared with the plain formula's in float64. Times are the process's own; what is reported are ratios.

    python benchmarks/cross_entropy.py [--shapes 64,14,512,8000 …] [--rounds 15] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from timing import alternately
from torch import Tensor
from torch.nn import functional as F

from everstep.cli.common import prepare as tune_malloc
from everstep.heads import Categorical, compiled_softmax
from everstep.native.processor import name as cpu_name
from everstep.state import valid


class Ways:
    """The same loss in three ways: rows B, steps T, features D, classes K."""

    def __init__(self, rows: int, steps: int, features: int, classes: int, smoothing: float):
        torch.manual_seed(1)
        self.head = Categorical(features, classes, label_smoothing=smoothing)
        self.ys = torch.randn(rows, steps, features)
        self.target = torch.randint(classes, (rows, steps))
        self.lengths = torch.randint(steps // 2, steps + 1, (rows,))
        self.inside = valid(self.lengths, steps)

    def _gradients(self, loss: Tensor, ys: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss.sum() / 1000, [ys, self.head.weight, self.head.bias]))

    def padded(self) -> list[Tensor]:
        """All steps; padding is masked."""
        ys = self.ys.clone().requires_grad_()
        target = self.target.masked_fill(~self.inside, -100)
        logits = self.head.logits(ys).flatten(0, 1)
        epsilon = self.head.label_smoothing
        return self._gradients(F.cross_entropy(logits, target.flatten(), reduction="sum", label_smoothing=epsilon), ys)

    def packed(self) -> list[Tensor]:
        """Valid steps."""
        ys = self.ys.clone().requires_grad_()
        logits = self.head.logits(ys[self.inside])
        epsilon = self.head.label_smoothing
        loss = F.cross_entropy(logits, self.target[self.inside], reduction="sum", label_smoothing=epsilon)
        return self._gradients(loss, ys)

    def everstep(self) -> list[Tensor]:
        """`Categorical.objective`."""
        ys = self.ys.clone().requires_grad_()
        return self._gradients(self.head.objective(ys, self.target, self.lengths)[0], ys)


class Alone:
    """From the logits of n rows to their gradient, and nothing else: `F.cross_entropy`, and this package's pass."""

    def __init__(self, rows: int, classes: int, smoothing: float):
        self.logits, self.bias = torch.randn(rows, classes), torch.zeros(classes)
        self.target, self.smoothing = torch.randint(classes, (rows,)), smoothing
        self.own = self.logits.clone()

    def torch(self) -> Tensor:
        """Forward and backward."""
        logits = self.logits.requires_grad_()
        loss = F.cross_entropy(logits, self.target, reduction="sum", label_smoothing=self.smoothing)
        return torch.autograd.grad(loss, logits)[0]

    def everstep(self) -> None:
        """In place: what was the gradient is the next call's logits."""
        compiled_softmax.slopes(self.own, self.bias, self.target, self.smoothing)


def measured(shape: tuple[int, ...], smoothing: float, rounds: int) -> dict[str, Any]:
    """Errors of the gradients, and ratios of times."""
    ways = Ways(*shape, smoothing)
    exact = Ways(*shape, smoothing)
    exact.head, exact.ys = exact.head.double(), exact.ys.double()
    wanted = exact.padded()
    names = ("padded", "packed", "everstep")
    errors = {}
    for name in names:
        pairs = zip(getattr(ways, name)(), wanted, strict=True)
        errors[name] = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
    times = alternately({name: getattr(ways, name) for name in names}, rounds, clock=process_time)
    faster = {name: median(o / m for o, m in zip(times[name], times["everstep"], strict=True)) for name in names[:2]}
    alone = Alone(int(ways.lengths.sum()), shape[3], smoothing)
    times = alternately({"torch": alone.torch, "everstep": alone.everstep}, rounds, clock=process_time)
    faster["alone"] = median(o / m for o, m in zip(times["torch"], times["everstep"], strict=True))
    return {"shape": shape, "smoothing": smoothing, "errors": errors, "times_faster_than": faster}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=["64,14,512,8000", "64,14,256,5000", "64,14,256,1000"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(given.threads)
    shapes = [tuple(map(int, shape.split(","))) for shape in given.shapes]
    found = [measured(shape, smoothing, given.rounds) for shape in shapes for smoothing in (0.0, 0.1)]
    for one in found:
        print(one)
    if given.json:
        report = {"cpu": cpu_name(), "threads": given.threads, "torch": torch.__version__, "measured": found}
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
