"""A training step of flax's LSTM under `jax.jit`, for `rivals_packages.py`, which is in another process.

Requests and answers are lines of JSON: {"shape": [steps, batch, features, size]} is answered by {"compile_s": seconds},
and {} by {"seconds": of the second of two steps}. The first line written is the versions.

    PYTHON rivals_jax.py THREADS
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

threads = int(sys.argv[1])
if hasattr(os, "sched_setaffinity"):  # XLA makes as many threads as there are CPUs to run on
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
os.environ |= {"NPROC": str(threads), "JAX_PLATFORMS": "cpu"}

import flax  # noqa: E402
import jax  # noqa: E402
from flax import linen  # noqa: E402


def answer(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def step(steps: int, batch: int, features: int, size: int) -> Any:
    """One compiled training step: the value, and gradients to the parameters and the inputs."""
    layer = linen.RNN(linen.OptimizedLSTMCell(size))
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(keys[0], (batch, steps, features))
    scale = jax.random.normal(keys[1], (batch, steps, size))
    weights = layer.init(keys[2], xs)

    def loss(weights: Any, xs: Any) -> Any:
        return (layer.apply(weights, xs) * scale).sum()

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(weights, xs).compile()
    return lambda: jax.block_until_ready(run(weights, xs))


def main() -> None:
    answer(jax=jax.__version__, flax=flax.__version__)
    run: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        if asked:
            run = step(*asked["shape"])
            answer(compile_s=time.perf_counter() - start)
        else:
            run()
            start = time.perf_counter()
            run()
            answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
