"""The peak memory of one training step, `nn.LSTM`'s and ours, each in a process of its own.

    PYTHON rivals_memory.py torch|fused STEPS BATCH FEATURES SIZE THREADS

prints what that process needs for a step beyond what it had before: weights and inputs do not count; outputs,
gradients and all between do. The code is loaded by a step of one row before.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from engine import EXTRA, GRID, train
from torch import Tensor, nn

import everstep as es
from everstep.native import memory_pool


def status(field: str) -> int:
    """Bytes, from what Linux tells of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak(who: str, steps: int, batch: int, features: int, size: int) -> int:
    """Bytes of resident memory that one training step adds at its peak."""
    torch.manual_seed(0)
    cell, module = es.LSTM(features, size), nn.LSTM(features, size, batch_first=True)

    def ours(x: Tensor) -> Tensor:
        return es.scan(cell, x, backend="fused")[0]

    def theirs(x: Tensor) -> Tensor:
        return module(x)[0]

    layer, run = (module, theirs) if who == "torch" else (cell, ours)
    wanted = list(layer.parameters())
    train(run, layer, torch.randn(1, 2, features, requires_grad=True))()
    xs, scale = torch.randn(batch, steps, features, requires_grad=True), torch.randn(batch, steps, size)
    memory_pool.clear()  # what we keep between calls counts too
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from here
    before = status("VmRSS")
    gradients = torch.autograd.grad(run(xs), [xs, *wanted], scale)
    most = status("VmHWM") - before
    assert all(g.isfinite().all() for g in gradients[1:])  # which takes memory of its own
    return most


def memory(threads: int, quick: bool) -> list[dict[str, Any]]:
    """At every shape of `engine.py`'s grid."""
    if not Path("/proc/self/clear_refs").exists():
        print("left out: peaks are read from /proc, which this system does not have")
        return []
    results = []
    for shape in [(50, 16, 256, 256), (100, 32, 256, 256)] if quick else [*GRID, *EXTRA]:
        found = {}
        for who in ("torch", "fused"):
            command = [sys.executable, __file__, who, *map(str, shape), str(threads)]
            found[who] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        results.append({"shape": shape, **found, "ratio": found["torch"] / found["fused"]})
        steps, batch, features, size = shape
        print(
            f"T{steps:<4} B{batch:<3} D{features:<5} H{size:<5} nn.LSTM {found['torch'] / 1e6:8.1f} MB / ours "
            f"{found['fused'] / 1e6:8.1f} MB = {found['torch'] / found['fused']:5.2f}",
            flush=True,
        )
    most = min(results, key=lambda r: r["ratio"])
    print(f"  least {most['ratio']:.2f}, at {most['shape']}; wanted 1 each")
    return results


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[6]))
    print(peak(sys.argv[1], *map(int, sys.argv[2:6])))
