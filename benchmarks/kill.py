"""Is a run that was killed with `kill -9` at a random moment, and resumed, bit for bit the run that was not?

Each trial starts a small training that saves at every second step, kills it at a random moment (every other trial:
as soon after that as a half-written checkpoint is seen), resumes it to its end, and compares the final weights and the
last checkpoint with those of a run that was left alone. Leaves with 1 if any differs.

    python benchmarks/kill.py [--kills 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a process with more threads must not be forked
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import learn_toy as toy  # noqa: E402
import torch._dynamo  # noqa: E402, F401  what the first optimizer of a process imports, in a second: here once for all

STEPS = 60
OPTIONS = {
    "max_steps": STEPS,
    "validate": toy.validation,
    "validate_every": 6,
    "checkpoint_every": 2,
    "averaging": "ema",
    "schedule": "cosine",
    "log_every_seconds": 0.0,
}


def start(out: Path, resume: bool) -> int:
    """Train in a child process; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        toy.run(out, resume=resume, **OPTIONS)
        code = 0
    finally:
        os._exit(code)


def finished(pid: int) -> bool:
    """Wait for a child; whether it left with 0."""
    return os.waitpid(pid, 0)[1] == 0


def result(out: Path) -> dict[str, bytes]:
    """The bits of a finished run."""
    last = out / "checkpoints" / f"step-{STEPS:08d}"
    return {path.name: path.read_bytes() for path in [out / "model.safetensors", *last.glob("*[!l].safetensors")]} | {
        "last": (last / "model.safetensors").read_bytes()
    }


def kill(out: Path, after: float, saving: bool) -> bool:
    """Train, kill after `after` seconds (`saving`: then within a save); whether it left half a checkpoint."""
    pid = start(out, resume=False)
    time.sleep(after)
    checkpoints, patience = out / "checkpoints", time.monotonic() + 0.5
    while saving and not list(checkpoints.glob(".tmp-*")) and time.monotonic() < patience:
        pass
    os.kill(pid, signal.SIGKILL)
    finished(pid)
    return bool(list(checkpoints.glob(".tmp-*")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        if not finished(start(Path(folder) / "whole", resume=False)):
            print("the uninterrupted run failed")
            return 1
        seconds = time.monotonic() - began
        expected = result(Path(folder) / "whole")
        for trial in range(arguments.kills):
            out = Path(folder) / str(trial)
            half = kill(out, generator.uniform(0, 0.9 * seconds), saving=trial % 2 == 1)
            newest = max((path.name for path in (out / "checkpoints").glob("step-*")), default="none")
            good = finished(start(out, resume=True)) and result(out) == expected
            equal += good
            print(
                f"kill {trial + 1}: newest checkpoint {newest}{', one half written or removed' if half else ''}: {good}"
            )
    print(f"{equal} of {arguments.kills} equal to the uninterrupted run ({seconds:.1f} s), bit for bit")
    return int(equal != arguments.kills)


if __name__ == "__main__":
    raise SystemExit(main())
