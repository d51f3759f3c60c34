"""`es.CRF` beside pytorch-crf (torchcrf 0.7.2): training and decoding, in turns in one process, on one thread.

Both get the same emission scores and have the same parameters; before they are timed, the gradients of both are
compared with ours in float64, and their best sequences with each other. Training is the loss, its gradients by the
scores and by all parameters. "forbidden" is training where a tag scheme forbids transitions, which pytorch-crf cannot;
"wide" is training with transitions of ±10,000, where our sums go the longer way. Times are the process's own, and a
turn is `calls` calls, so that other work on the machine meets all alike.

    pip install --no-deps --target FOLDER pytorch-crf==0.7.2
    PYTHONPATH=FOLDER python benchmarks/crf.py [--shapes 32,50,20 32,50,60] [--rounds 15] [--calls 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torchcrf
from timing import alternately, summary
from torch import Tensor

import everstep as es
from everstep.cli.common import prepare as tune_malloc
from everstep.native import toolchain
from everstep.native.processor import name as cpu_name

Way = Callable[[], Any]


class Both:
    """The two with the same parameters, and what they are run on: rows that all have `time` steps, or `ragged` ones."""

    def __init__(self, batch: int, time: int, tags: int, ragged: bool):
        torch.manual_seed(1)
        self.theirs, self.ours = torchcrf.CRF(tags, batch_first=True), es.CRF(None, tags)
        self.given = [self.theirs.transitions, self.theirs.start_transitions, self.theirs.end_transitions]
        for mine, other in zip([self.ours.transitions, self.ours.start, self.ours.end], self.given, strict=True):
            mine.data.copy_(other.data.normal_())
        self.scores, self.target = torch.randn(batch, time, tags), torch.randint(tags, (batch, time))
        self.lengths = torch.randint(1, time + 1, (batch,)).index_fill_(0, torch.tensor(0), time) if ragged else None
        self.mask = (
            torch.ones(batch, time, dtype=torch.bool)
            if self.lengths is None
            else torch.arange(time) < self.lengths[:, None]
        )
        kind = torch.arange(tags) % 3  # outside, begin, inside
        follows = (kind[None] < 2) | (
            (kind[:, None] > 0) & (torch.arange(tags)[:, None] // 3 == torch.arange(tags) // 3)
        )
        self.bound = es.CRF(None, tags, allowed=(follows, kind < 2, kind < 3))
        self.outside = torch.zeros_like(self.target)
        self.wide = es.CRF(None, tags)
        for parameter in self.wide.parameters():
            parameter.data.normal_(std=1e4)

    def their_step(self) -> list[Tensor]:
        """Loss and gradients of pytorch-crf."""
        scores = self.scores.clone().requires_grad_()
        loss = -self.theirs(scores, self.target, self.mask)
        return [loss, *torch.autograd.grad(loss, [scores, *self.given])]

    def our_step(self, head: es.CRF, target: Tensor) -> list[Tensor]:
        """Loss and gradients of everstep."""
        scores = self.scores.clone().requires_grad_()
        loss = head.loss(scores, target, self.lengths).sum()
        return [loss, *torch.autograd.grad(loss, [scores, head.transitions, head.start, head.end])]

    def check(self) -> dict[str, float]:
        """Each one's largest difference from ours in float64, of gradients; the best sequences have to be the same."""
        exact = copy.deepcopy(self)
        exact.ours, exact.scores = exact.ours.double(), exact.scores.double()
        ways = {"pytorch-crf": self.their_step(), "everstep": self.our_step(self.ours, self.target)}
        want = exact.our_step(exact.ours, exact.target)[1:]
        apart = {
            name: max(float((a.double() - b).abs().max()) for a, b in zip(found[1:], want, strict=True))
            for name, found in ways.items()
        }
        best, lengths = self.ours.predict(self.scores, self.lengths), self.lengths
        steps = [best.shape[1]] * len(best) if lengths is None else lengths.tolist()
        if self.theirs.decode(self.scores, self.mask) != [row[:n].tolist() for row, n in zip(best, steps, strict=True)]:
            raise SystemExit("the best sequences differ")
        return apart


def repeated(way: Way, calls: int) -> Way:
    """So many calls."""

    def turn() -> None:
        for _ in range(calls):
            way()

    return turn


def measured(batch: int, time: int, tags: int, ragged: bool, rounds: int, calls: int) -> dict[str, Any]:
    """One shape."""
    both = Both(batch, time, tags, ragged)
    apart = both.check()
    training: dict[str, Way] = {
        "pytorch-crf": both.their_step,
        "everstep": lambda: both.our_step(both.ours, both.target),
        "everstep, forbidden": lambda: both.our_step(both.bound, both.outside),
        "everstep, wide": lambda: both.our_step(both.wide, both.target),
    }
    decoding: dict[str, Way] = {
        "pytorch-crf": torch.no_grad()(lambda: both.theirs.decode(both.scores, both.mask)),
        "everstep": lambda: both.ours.predict(both.scores, both.lengths),
        "everstep, marginals": torch.no_grad()(lambda: both.ours.marginals(both.scores, both.lengths)),
        "everstep, 5 best": lambda: both.ours.nbest(both.scores, 5, both.lengths),
    }
    result: dict[str, Any] = {"batch": batch, "time": time, "tags": tags, "ragged": ragged, "apart": apart}
    for what, ways in (("training", training), ("decoding", decoding)):
        turns = {name: repeated(way, calls) for name, way in ways.items()}
        times = {
            name: [s / calls for s in turn] for name, turn in alternately(turns, rounds, clock=process_time).items()
        }
        base = times["pytorch-crf"]
        result[what] = {
            name: {
                **summary(seconds),
                "ratio_of_medians": statistics.median(base) / statistics.median(seconds),
                "ratio_of_least": min(base) / min(seconds),
            }
            for name, seconds in times.items()
        }
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["32,50,20", "32,50,60", "32,50,9", "1,50,20"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tune_malloc()  # for both: they share the process
    torch.set_num_threads(options.threads)
    compiler = str(toolchain.compiler())
    print(
        f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}, {compiler}, load {os.getloadavg()[0]:.1f}"
    )
    results = []
    for shape in options.shapes:
        for ragged in (False, True) if shape == options.shapes[0] else (False,):
            results.append(found := measured(*map(int, shape.split(",")), ragged, options.rounds, options.calls))
            apart = ", ".join(f"{name} {value:.1e}" for name, value in found["apart"].items())
            print(f"batch, time, tags {shape}{' at most' if ragged else ''}; gradients from float64's: {apart}")
            for what in ("training", "decoding"):
                for name, way in found[what].items():
                    spread = f"{way['median_ms']:8.2f} ms, {way['least_ms']:.2f} … {way['most_ms']:.2f}"
                    ratios = f"{way['ratio_of_medians']:6.1f}x of medians, {way['ratio_of_least']:6.1f}x of the least"
                    print(f"  {what} {name:22} {spread:32} {ratios}")
    if options.json:
        versions = {"cpu": cpu_name(), "threads": options.threads, "torch": torch.__version__, "compiler": compiler}
        told = {
            **versions,
            "load": os.getloadavg()[0],
            "rounds": options.rounds,
            "calls": options.calls,
            "shapes": results,
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
