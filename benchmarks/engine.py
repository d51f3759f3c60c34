"""The compiled engine beside its rivals, in turns in one process: training steps and forward passes.

    python benchmarks/engine.py [--only grid,mixed,cells,ragged,stream] [--quick] [--json FILE]

A training step is forward and backward to all parameters and inputs; `mixed` is part of the grid under bfloat16
autocast. Medians of at least 9 (3 where a step takes over 2 s).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import alternately, summary
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

import everstep as es
from everstep.native.processor import name as cpu_name

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
QUICK = [*EXTRA, *[(50, b, h, h) for h in (64, 1024) for b in (1, 16, 64)]]
KINDS: dict[str, tuple[Any, Any]] = {"LSTM": (es.LSTM, nn.LSTM), "GRU": (es.GRU, nn.GRU), "RNN": (es.RNN, nn.RNN)}


def rounds(*ways: Callable[[], object]) -> int:
    """9 calls of each, fewer where a call takes over 2 s, more where it takes less than 50 ms, and than 10 ms."""
    longest = 0.0
    for way in ways:
        way()
        start = time.perf_counter()
        way()
        longest = max(longest, time.perf_counter() - start)
    return 3 if longest > 2 else 9 if longest > 0.05 else 25 if longest > 0.01 else 101


def ratio(ways: dict[str, Callable[[], object]], rest: float = 0, least: int = 0) -> dict[str, Any]:
    """Every way's times of at `least` so many calls, and the first's median over the others'; `rest` as in
    `alternately`."""
    seconds = alternately(ways, max(least, rounds(*ways.values())), rest=rest)
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


def grid(shapes: list[tuple[int, int, int, int]], kinds: list[str], mixed: bool = False) -> list[dict[str, Any]]:
    results = []
    short = partial(torch.autocast, "cpu", torch.bfloat16, enabled=mixed)
    for kind in kinds:
        for steps, batch, features, hidden in shapes:
            torch.manual_seed(0)
            make, rival = KINDS[kind]
            cell, module = make(features, hidden), rival(features, hidden, batch_first=True)
            xs = torch.randn(batch, steps, features, requires_grad=True)

            def ours(x: Tensor, cell: es.Cell = cell) -> Tensor:
                with short():
                    return es.scan(cell, x, backend="fused")[0].float()

            def theirs(x: Tensor, module: nn.Module = module) -> Tensor:
                with short():
                    return module(x)[0].float()

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
            told = f"{kind:5} T{steps:<4} B{batch:<3} D{features:<5} H{hidden:<5}"
            for what in ("train", "forward"):
                torchs, ours_ms = (found[what][name]["median_ms"] for name in ("torch", "fused"))
                told += f" {what} {torchs:9.2f} / {ours_ms:9.2f} ms = {torchs / ours_ms:5.2f}"
            print(f"{told}   {speed:5.0f} GFLOP/s", flush=True)
        for what in ("train", "forward"):
            mine = [r[what]["ratio"]["fused"] for r in results if r["kind"] == kind]
            mean = math.exp(sum(map(math.log, mine)) / len(mine))
            print(f"{kind:5} {what}: geometric mean {mean:.2f}, least {min(mine):.2f}", flush=True)
    return results


@es.gated("a b m", state="h k")
def Unnamed(x, h, s):  # type: ignore[no-untyped-def]
    """An equation nobody has named: two states that gate one another."""
    a = torch.sigmoid(x.a + h.a)
    k = a * s.k + torch.tanh(x.b + h.b)
    return torch.tanh(k) * torch.sigmoid(x.m + h.m) + (1 - a) * s.h, k


def users(hidden: int) -> dict[str, es.Cell]:
    """Twelve cells that are no LSTM of PyTorch's: what a user would write, or find in a paper."""
    n = hidden
    return {
        "peepholes": es.PeepholeLSTM(n, n),
        "layer norm": es.LayerNormLSTM(n, n),
        "zoneout": es.Zoneout(es.LSTM(n, n), 0.1),
        "recurrent dropout": es.RecurrentDropout(es.ActivationLSTM(n, n), 0.1),
        "two products": es.GRUBefore(n, n),
        "an unnamed equation": Unnamed(n, n),
        "layer norm GRU": es.LayerNormGRU(n, n),
        "MGU": es.MGU(n, n),
        "MUT1": es.MUT1(n, n),
        "NAS": es.NASCell(n, n),
        "multiplicative LSTM": es.MultiplicativeLSTM(n, n),
        "sLSTM": es.SLSTM(n, n),
    }


def work(cell: es.Cell, xs: Tensor) -> float:
    """Multiplications and additions of a training step's products: three times those of the forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        es.scan(cell, xs[:, :2], backend="reference")
    return 3 * counter.get_total_flops() / 2 * xs.shape[1]


def cells(shapes: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Users' cells: time per multiplication beside nn.LSTM's, and beside the eager loop."""
    results = []
    for steps, batch, hidden in shapes:
        xs = torch.randn(batch, steps, hidden, requires_grad=True)
        module = nn.LSTM(hidden, hidden, batch_first=True)
        lstm_work = 6 * steps * batch * 8 * hidden * hidden
        for name, cell in users(hidden).items():
            ours = train(lambda x, c=cell: es.scan(c, x)[0], cell, xs)
            theirs = train(lambda x, m=module: m(x)[0], module, xs)
            eager = train(lambda x, c=cell: es.scan(c, x, backend="reference")[0], cell, xs)
            found = ratio({"nn.LSTM": theirs, "fused": ours})
            seconds = alternately({"eager": eager}, 3, 1)["eager"]
            flops = work(cell, xs)
            each = found["fused"]["median_ms"] / flops / (found["nn.LSTM"]["median_ms"] / lstm_work)
            against = 1000 * sorted(seconds)[1] / found["fused"]["median_ms"]
            results.append(
                {"cell": name, "shape": (steps, batch, hidden), "per_flop": each, "eager_ratio": against, **found}
            )
            print(
                f"{name:20} T{steps} B{batch} H{hidden}: {found['fused']['median_ms']:8.2f} ms, per multiplication "
                f"{each:5.2f} of nn.LSTM's; the eager loop takes {against:5.1f} times as long",
                flush=True,
            )
        here = [r["per_flop"] for r in results if r["shape"] == (steps, batch, hidden)]
        mean = math.exp(sum(map(math.log, here)) / len(here))
        print(f"  per multiplication: geometric mean {mean:.2f}, worst {max(here):.2f}", flush=True)
    return results


def ragged() -> list[dict[str, Any]]:
    """Lengths uniform in 1 … T beside padded and packed; resets at 5 % beside none."""
    results = []
    for kind, (steps, batch, hidden) in itertools.product(("LSTM", "GRU"), ((100, 32, 256), (200, 16, 128))):
        torch.manual_seed(1)
        make, rival = KINDS[kind]
        cell, module = make(hidden, hidden), rival(hidden, hidden, batch_first=True)
        xs = torch.randn(batch, steps, hidden, requires_grad=True)
        lengths = torch.randint(1, steps + 1, (batch,))
        resets = torch.rand(batch, steps) < 0.05

        def packed(x: Tensor, module: nn.Module = module, lengths: Tensor = lengths, steps: int = steps) -> Tensor:
            bundle = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            ys: Tensor = pad_packed_sequence(module(bundle)[0], batch_first=True, total_length=steps)[0]
            return ys

        rival_step = train(packed, module, xs)
        ways = {
            "padded": train(lambda x, c=cell: es.scan(c, x, backend="fused")[0], cell, xs),
            "ragged": train(lambda x, c=cell, n=lengths: es.scan(c, x, lengths=n, backend="fused")[0], cell, xs),
            "resets": train(lambda x, c=cell, r=resets: es.scan(c, x, resets=r, backend="fused")[0], cell, xs),
        }
        # among ours alone: malloc gives back what the rival leaves, hundreds of MB, in whose turn it likes
        found = ratio(ways, least=101)  # a few hundredths are looked for
        median = {name: found[name]["median_ms"] for name in ways}
        found["rival"] = ratio({"torch packed": rival_step, "ragged": ways["ragged"]})
        fill = float(lengths.sum()) / (batch * steps)
        found |= {
            "kind": kind,
            "shape": (steps, batch, hidden),
            "fill": fill,
            "ragged_over_padded_times_fill": median["ragged"] / median["padded"] / fill,
            "packed_over_ragged": found["rival"]["ratio"]["ragged"],
            "resets_over_none": median["resets"] / median["padded"],
        }
        results.append(found)
        print(
            f"{kind} T{steps} B{batch} H{hidden}: ragged {found['ragged_over_padded_times_fill']:.2f} of padded x fill "
            f"({fill:.2f}), packed nn.{kind} / ours {found['packed_over_ragged']:.2f}; resets "
            f"{found['resets_over_none']:.2f} of none",
            flush=True,
        )
    return results


def streaming() -> list[dict[str, Any]]:
    """One step of one row."""
    results = []
    for hidden in (128, 512):
        cell, module, single = es.LSTM(hidden, hidden), nn.LSTM(hidden, hidden), nn.LSTMCell(hidden, hidden)
        stream, x = es.Stream(cell), torch.randn(1, hidden)
        zeros = torch.zeros(1, hidden)
        with torch.no_grad():
            found = ratio(
                {
                    "nn.LSTM": lambda m=module, x=x, z=zeros: m(x, (z, z)),
                    "nn.LSTMCell": lambda m=single, x=x, z=zeros: m(x, (z, z)),
                    "Stream": lambda s=stream, x=x: s(x),
                }
            )
        medians = {name: found[name]["median_ms"] * 1000 for name in ("nn.LSTM", "nn.LSTMCell", "Stream")}
        results.append({"hidden": hidden, **found})
        print(f"one step, H{hidden}: " + ", ".join(f"{n} {v:.1f} us" for n, v in medians.items()), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="grid")
    parser.add_argument("--kinds", default="LSTM,GRU,RNN")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    here = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    # parts that are not run now stay as they are
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json and options.json.exists() else {}
    results: dict[str, Any] = known | here
    kinds = options.kinds.split(",")
    if "grid" in options.only:
        others = [found for found in results.get("grid", []) if found["kind"] not in kinds]
        results["grid"] = others + grid(QUICK if options.quick else [*GRID, *EXTRA], kinds)
    if "mixed" in options.only:
        results["mixed"] = grid(QUICK, kinds, mixed=True)
    if "cells" in options.only:
        results["cells"] = cells([(100, 32, 256), (200, 8, 128)])
    if "ragged" in options.only:
        results["ragged"] = ragged()
    if "stream" in options.only:
        results["streaming"] = streaming()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
