"""Peak memory and time of one training step against the length of the sequence: plain BPTT and checkpointed.

    python benchmarks/bptt_memory.py [--quick]

A language model (embedding, GRU and head) learns from one long batch. Memory is what one step, forward and backward,
adds to the resident memory of a fresh process at its peak: weights and tokens do not count, all between does. Time is
measured alternately in one more process. Writes docs/results/bptt_memory.json and docs/pictures/bptt-memory.png.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from rivals_memory import status
from timing import alternately

from everstep.data.batches import TokenBatch
from everstep.learn import Objective, checkpointed
from everstep.native import memory_pool
from everstep.networks.likelihood import likelihood
from everstep.networks.token_model import TokenModel, TokenModelSection

DOCS = Path(__file__).parents[1] / "docs"
TIMES = (1_000, 3_162, 10_000, 31_623, 100_000)
VOCABULARY, BATCH, UNITS = 50, 4, 128
WAYS: dict[str, Objective] = {"plain": likelihood(), "checkpointed": checkpointed(likelihood())}
# Okabe and Ito's vermilion and blue
COLOURS = {"plain": "#D55E00", "checkpointed": "#0072B2"}


def model() -> TokenModel:
    torch.manual_seed(0)
    return TokenModel(VOCABULARY, TokenModelSection(cell="GRU", embedding_size=UNITS, hidden_size=UNITS))


def tokens(time: int) -> TokenBatch:
    both = torch.randint(VOCABULARY, (2, BATCH, time), generator=torch.Generator().manual_seed(1))
    return TokenBatch(both[0], both[1], None, None, 0, time)


def train(learner: TokenModel, way: str, batch: TokenBatch) -> None:
    learner.zero_grad()
    for loss in WAYS[way](learner, batch, None):
        (loss.total.sum() / batch.count).backward()


def peak(way: str, time: int) -> int:
    """Bytes of resident memory that one step adds at its peak."""
    learner, batch = model(), tokens(time)
    train(learner, way, tokens(100))
    memory_pool.clear()  # what we keep between calls counts too
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from here
    before = status("VmRSS")
    train(learner, way, batch)
    return status("VmHWM") - before


def seconds(time: int) -> dict[str, float]:
    """Median of a step of each way."""
    learner, batch = model(), tokens(time)
    runs = alternately({way: lambda way=way: train(learner, way, batch) for way in WAYS}, 3, warmup=1)
    return {way: median(values) for way, values in runs.items()}


def slope(points: list[tuple[int, float]]) -> float:
    """Least squares in log–log: memory grows with time to this power."""
    xs, ys = ([math.log(p[k]) for p in points] for k in (0, 1))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def draw(results: list[dict[str, Any]], slopes: dict[str, float], to: Path) -> None:
    """Memory against length, both logarithmic, with the line of √T."""
    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    times = [r["steps"] for r in results]
    for way, marker in (("plain", "o"), ("checkpointed", "s")):
        values = [r["bytes"][way] / 2**20 for r in results]
        label = f"{way} BPTT: grows with T^{slopes[way]:.2f}"
        axes.loglog(times, values, color=COLOURS[way], marker=marker, markersize=8, linewidth=2.5, label=label)
    last = results[-1]["bytes"]["checkpointed"] / 2**20
    guide = [last * 1.6 * math.sqrt(t / times[-1]) for t in times]
    axes.loglog(times, guide, color="#555555", linestyle="--", linewidth=1.8, label="guide: √T")
    axes.set_xlabel("steps of the sequence, T", fontsize=14)
    axes.set_ylabel("peak memory of a training step (MiB)", fontsize=14)
    axes.set_title(f"GRU of {UNITS} units, batch {BATCH}, one thread", fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=13, frameon=False, loc="upper left")
    figure.savefig(to)


def asked(*what: object) -> Any:
    """The answer of a fresh process."""
    command = [sys.executable, __file__, *map(str, what)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(quick: bool) -> None:
    results = []
    for time in TIMES[:3] if quick else TIMES:
        used, spent = {way: asked(way, time) for way in WAYS}, asked("time", time)
        ratio = spent["checkpointed"] / spent["plain"]
        results.append({"steps": time, "bytes": used, "seconds": spent, "time_ratio": ratio})
        print(
            f"T {time:>7,}: plain {used['plain'] / 2**20:9.1f} MiB, checkpointed {used['checkpointed'] / 2**20:7.1f} "
            f"MiB; time {spent['plain']:.3f} s and {spent['checkpointed']:.3f} s, ×{ratio:.2f}",
            flush=True,
        )
    slopes = {way: slope([(r["steps"], r["bytes"][way]) for r in results]) for way in WAYS}
    print("memory grows with T to the power", {way: round(value, 3) for way, value in slopes.items()})
    if quick:
        return
    setting = {"units": UNITS, "batch": BATCH, "vocabulary": VOCABULARY, "threads": torch.get_num_threads()}
    record = {"setting": setting, "torch": torch.__version__, "slopes": slopes, "results": results}
    (DOCS / "results" / "bptt_memory.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(results, slopes, DOCS / "pictures" / "bptt-memory.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    if len(arguments) == 2:
        way, time = arguments[0], int(arguments[1])
        print(json.dumps(seconds(time) if way == "time" else peak(way, time)))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="the three shortest, and nothing is written")
        main(parser.parse_args().quick)
