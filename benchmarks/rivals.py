"""The compiled engine beside what else runs a recurrent cell on a CPU, and beside what the machine itself can do.

    python benchmarks/rivals.py [--only compile,affine,…] [--jax-python PYTHON] [--threads 2] [--quick] [--json FILE]

Parts: torchrecurrent, torchrl, jax and onnx (`rivals_packages.py`), memory (`rivals_memory.py`), compile, affine and
gemm (here). Each takes turns with its rival; medians of at least 9, of 3 where a step takes over 2 s; in brackets the
least and the most. A package that is not installed is named with the command that installs it, and left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import rivals_memory
import rivals_packages
import torch
from engine import forward, ratio, train
from rivals_packages import Result, seconds_of, told, verdict
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F

import everstep as es
from everstep.native.processor import name as cpu_name


class ByHand(es.Cell):
    """An LSTM as a user would write it: plain operations, so that `torch.compile` can follow them too."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.weight_ih, self.weight_hh = (nn.Parameter(torch.randn(4 * size, size) / size**0.5) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(4 * size))

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return like.new_zeros(batch, self.output_size), like.new_zeros(batch, self.output_size)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step."""
        return lstm(F.linear(x, self.weight_ih, self.bias) + F.linear(state[0], self.weight_hh), state[1])


def lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What an LSTM makes of its sums."""
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, (h, c)


def unrolled(cell: ByHand, xs: Tensor) -> Tensor:
    """The loop over time in Python."""
    state, ys = cell.initial_state(len(xs), xs), []
    for x in xs.unbind(1):
        y, state = cell.step(x, state)
        ys.append(y)
    return torch.stack(ys, 1)


def hoisted(cell: ByHand, xs: Tensor) -> Tensor:
    """The same with the products of the inputs in one before it, which the compiler does not do by itself."""
    state, ys = cell.initial_state(len(xs), xs), []
    for sums in F.linear(xs, cell.weight_ih, cell.bias).unbind(1):
        y, state = lstm(sums + F.linear(state[0], cell.weight_hh), state[1])
        ys.append(y)
    return torch.stack(ys, 1)


def compiled(quick: bool) -> list[Result]:
    """A Python loop over the step of an LSTM, compiled whole by `torch.compile`. Compile times are of empty caches."""

    def first(run: Callable[[Tensor], Tensor], cell: nn.Module, xs: Tensor) -> float:
        return seconds_of(lambda: train(run, cell, xs)())

    es.scan(es.RNN(1, 1), torch.zeros(1, 1, 1), backend="fused")  # the kernels of all cells are compiled only once
    results: list[Result] = []
    for steps, batch, size in [(8, 8, 128)] if quick else [(32, 8, 128), (32, 32, 256)]:
        torch.manual_seed(0)
        cell, xs = ByHand(size), torch.randn(batch, steps, size, requires_grad=True)
        torch.compiler.reset()
        runs: dict[str, Callable[[Tensor], Tensor]] = {
            "torch.compile": torch.compile(partial(unrolled, cell), fullgraph=True),
            "torch.compile, hoisted": torch.compile(partial(hoisted, cell), fullgraph=True),
            "fused": lambda x, c=cell: es.scan(c, x, backend="fused")[0],
        }
        took = {}
        with fresh_cache(), tempfile.TemporaryDirectory() as cache:
            with patch.dict("os.environ", EVERSTEP_CACHE=cache):
                for name, run in runs.items():
                    took[name] = first(run, cell, xs)
                    torch.testing.assert_close(run(xs), unrolled(cell, xs), rtol=1e-4, atol=1e-4)
            found = ratio({name: train(run, cell, xs) for name, run in runs.items()})
        beside = {name: found[name]["median_ms"] / found["fused"]["median_ms"] for name in runs}
        results.append({"shape": (steps, batch, size), "compile_s": took, "beside": beside, **found})
        print(f"T{steps} B{batch} H{size}")
        for name in runs:
            print(f"  {name:22} {told(found[name])}, / fused {beside[name]:.2f}; compiling took {took[name]:.1f} s")
    for name in ("torch.compile", "torch.compile, hoisted"):
        verdict(f"{name} / fused", [r["beside"][name] for r in results], each=2)
    return results


class Recurrence(es.Affine):
    """h_t = a_t ∘ h_{t-1} + b_t with a_t and b_t given side by side as x_t."""

    def __init__(self, size: int):
        super().__init__(2 * size, size)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of x."""
        a, b = x.chunk(2, -1)
        return a, b


def joined(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two affine steps as one."""
    return left[0] * right[0], left[1] * right[0] + right[1]


def scanned(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence from zeros by PyTorch's associative scan."""
    hs: Tensor = associative_scan(joined, (a, b), 1, combine_mode="generic")[1]
    return hs


def affine(quick: bool) -> list[Result]:
    """The forward pass of an affine cell: its share of the memory's speed, counting a and b read and h written.

    That speed is of c = a + 3 b over arrays far larger than the caches (McCalpin 1995, "STREAM"), in turns with as many
    calls as move as many bytes, each of other numbers; and in turns with one call, which then finds nothing of Python,
    PyTorch and everstep in the caches.
    """
    results: list[Result] = []
    first, second = torch.randn(2, (64 if quick else 512) << 16)
    triad = partial(torch.add, first, second, alpha=3, out=torch.empty_like(first))
    ours, theirs = ("parallel", "fused"), ("associative_scan", "associative_scan, compiled")
    shapes = [(4096, 1, 1024), (1000, 32, 256), (1000, 16, 1024)]
    for steps, batch, size in [(512, 4, 256)] if quick else shapes:
        a, b = torch.rand(batch, steps, size), torch.randn(batch, steps, size)
        given = a, b, torch.cat([a, b], -1)
        calls = _affine_calls(size, ours, theirs)
        ways = {name: partial(call, *given) for name, call in calls.items()}
        part = a.nbytes / first.nbytes
        many = [tuple(t.clone() for t in given) for _ in range(max(1, round(1 / part)))]
        with torch.no_grad(), fresh_cache():
            took = seconds_of(ways[theirs[1]])
            for name in theirs:
                torch.testing.assert_close(ways["fused"]()[0], ways[name](), rtol=1e-3, atol=1e-3)
            found = ratio(ways)
            memory = {name: ratio({"triad": triad, name: partial(_each, call, many)}) for name, call in calls.items()}
            alone = {name: ratio({"triad": triad, name: way}) for name, way in ways.items()}
        found |= {"shape": (steps, batch, size), "compile_s": took, "memory": memory, "alone": alone}
        found["share"] = {name: len(many) * part * memory[name]["ratio"][name] for name in ways}
        found["share_alone"] = {name: part * alone[name]["ratio"][name] for name in ways}
        best = min(found[name]["median_ms"] for name in ours)
        found["beside"] = {name: found[name]["median_ms"] / best for name in theirs}
        results.append(found)
        print(f"T{steps} B{batch} H{size} (associative_scan compiled in {took:.1f} s)")
        for name in ways:
            speed = 3 * first.nbytes / memory[name]["triad"]["median_ms"] / 1e6
            ahead = f"; / the better of ours {found['beside'][name]:.2f}" if name in theirs else ""
            share, single = found["share"][name], found["share_alone"][name]
            shares = f"{share:.2f} of the memory's {speed:.0f} GB/s, {single:.2f} in one call"
            print(f"  {name:26} {told(found[name])}; {shares}{ahead}")
    for title, key in (("calls in a row", "share"), ("one call, with empty caches", "share_alone")):
        shares_of_best = [max(r[key][name] for name in ours) for r in results]
        verdict(f"share of the memory's speed, the better backend, {title}", shares_of_best, each=0.7)
    for name in theirs:
        verdict(f"{name} / the better backend", [r["beside"][name] for r in results], each=5)
    return results


def _affine_calls(size: int, ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Every way to run the recurrence, of a, b and both side by side."""
    cell = Recurrence(size)
    torch.compiler.reset()
    compiled = torch.compile(scanned)
    calls: dict[str, Callable[..., Any]] = {
        theirs[0]: lambda a, b, xs: scanned(a, b),
        theirs[1]: lambda a, b, xs: compiled(a, b),
    }
    return calls | {name: lambda a, b, xs, name=name: es.scan(cell, xs, backend=name) for name in ours}


def _each(call: Callable[..., Any], many: Sequence[tuple[Tensor, ...]]) -> None:
    for given in many:
        call(*given)


class Elman(es.Cell):
    """h_t = tanh(W h_{t-1} + x_t): x_t is added as it comes."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.weight = nn.Parameter(torch.randn(size, size) / size**0.5)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        h = torch.tanh(F.linear(state, self.weight) + x)
        return h, h


class GatesGiven(es.Cell):
    """An LSTM whose x_t are the products of its inputs: W_x x_t + b."""

    def __init__(self, size: int):
        super().__init__(4 * size, size)
        self.weight = nn.Parameter(torch.randn(4 * size, size) / size**0.5)

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return like.new_zeros(batch, self.output_size), like.new_zeros(batch, self.output_size)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step."""
        return lstm(F.linear(state[0], self.weight) + x, state[1])


def products(h: Tensor, weight: Tensor, steps: int) -> Callable[[], object]:
    """`steps` times h W into the same place: the products of the loop, with nothing between them."""
    out = torch.empty(len(h), weight.shape[1])

    def run() -> None:
        for _ in range(steps):
            torch.mm(h, weight, out=out)

    return run


def gemm(quick: bool) -> list[Result]:
    """The loop over time, forward and without products of x, beside PyTorch's products of its shape alone."""
    results, steps = [], 10 if quick else 50
    for size in (256,) if quick else (256, 512, 1024):
        for batch in (32,) if quick else (32, 64):
            for cell in (Elman(size), GatesGiven(size)):
                torch.manual_seed(0)
                xs, h = torch.randn(batch, steps, cell.input_size), torch.randn(batch, size)
                weight = cell.weight.detach()
                ways = {
                    "h W^T": products(h, weight.t(), steps),  # as `linear` has it
                    "h W": products(h, weight.t().contiguous(), steps),
                    "loop": forward(lambda x, c=cell: es.scan(c, x, backend="fused")[0], xs),
                }
                found = ratio(ways)
                alone = min(found["h W"]["median_ms"], found["h W^T"]["median_ms"])
                share = alone / found["loop"]["median_ms"]
                speed = 2 * steps * batch * weight.numel() / alone / 1e6
                name = type(cell).__name__
                results.append({"cell": name, "shape": (steps, batch, size), "share": share, **found})
                print(
                    f"{name:10} T{steps} B{batch} H{size}: products {alone:9.3f} ms ({speed:.0f} GFLOP/s), loop "
                    f"{told(found['loop'])} = {share:.2f} of their speed",
                    flush=True,
                )
    verdict("share of the products' speed", [r["share"] for r in results], each=0.8)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "torchrecurrent": lambda o: rivals_packages.torchrecurrent(o.quick),
        "torchrl": lambda o: rivals_packages.torchrl(o.quick),
        "jax": lambda o: rivals_packages.jax(o.jax_python, o.threads, o.quick),
        "onnx": lambda o: rivals_packages.onnx(o.quick),
        "compile": lambda o: compiled(o.quick),
        "memory": lambda o: rivals_memory.memory(o.threads, o.quick),
        "affine": lambda o: affine(o.quick),
        "gemm": lambda o: gemm(o.quick),
    }
    parser.add_argument("--only", default=",".join(parts))
    parser.add_argument("--jax-python", help="an interpreter that has jax and flax; the part is left out without it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few and small shapes, to see that all of it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - parts.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} should be among {', '.join(parts)}")
    torch.set_num_threads(options.threads)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    results: Result = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in wanted:
        print(f"\n{name}", flush=True)
        results[name] = parts[name](options)
        if options.json:  # after each part: a later one may fail
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
