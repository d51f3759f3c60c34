"""Time of one learning step of a GRU: forward in time (RTRL, SnAp-1, UORO) against BPTT.

    python benchmarks/online.py

BPTT runs over 1,000 steps at once and its time is divided by them; the others learn step by step. They are timed
alternately. Writes docs/results/online.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from timing import alternately

import everstep as es
from everstep.state import detach

SIZES, BATCH, STEPS, ONLINE_STEPS = (8, 16, 32, 64), 1, 1_000, 10
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "online.json"


def bptt(units: int) -> Callable[[], object]:
    cell, xs = es.GRU(units, units), torch.randn(BATCH, STEPS, units)
    return lambda: cell(xs)[0].sum().backward()


def online(units: int, rule: str) -> Callable[[], object]:
    cell, xs = es.Online(es.GRU(units, units), rule), torch.randn(ONLINE_STEPS, BATCH, 1, units)

    def learn() -> None:
        state = None
        for x in xs:
            ys, state = cell(x, state)
            ys.sum().backward()
            state = detach(state)

    return learn


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = []
    for units in SIZES:
        ways = {"bptt": bptt(units)} | {rule: online(units, rule) for rule in ("rtrl", "snap1", "uoro")}
        seconds = alternately(ways, 5, warmup=1)
        each = {way: median(s) / (STEPS if way == "bptt" else ONLINE_STEPS) for way, s in seconds.items()}
        results.append({"units": units, "seconds_a_step": each})
        print(
            f"{units:>3} units: BPTT {1e6 * each['bptt']:6.1f} µs a step; "
            + ", ".join(
                f"{way} {1e3 * s:6.2f} ms (×{s / each['bptt']:,.0f})" for way, s in each.items() if way != "bptt"
            ),
            flush=True,
        )
    setting = {"batch": BATCH, "bptt_steps": STEPS, "threads": 1, "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
