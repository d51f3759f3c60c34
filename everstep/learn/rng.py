"""The state of the random generators that a run may draw from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CPU = "cpu"


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed torch (CPU and CUDA) and the global generators of numpy and Python; each process `rank` otherwise."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code may draw from numpy's global generator
    random.seed(seed)


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of all generators: those of torch as tensors, the others as JSON values."""
    tensors = {_CPU: torch.get_rng_state()}
    in_use: Callable[[], bool] = torch.cuda.is_initialized  # reading a state would initialise CUDA
    if in_use():
        tensors |= {str(index): state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return tensors, {"numpy": [kind, np.asarray(keys).tolist(), *rest], "python": [version, list(internal), gauss]}


def restore(tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
    """Restore what `capture` returned; states of absent CUDA devices are skipped."""
    torch.set_rng_state(tensors[_CPU])
    for index in range(torch.cuda.device_count()):
        if str(index) in tensors:
            torch.cuda.set_rng_state(tensors[str(index)], index)
    kind, keys, *rest = data["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = data["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def untouched() -> Iterator[None]:
    """A context manager that restores every generator afterwards.

    Example:
        >>> with untouched():
        ...     _ = torch.rand(3)
    """
    state = capture()
    try:
        yield
    finally:
        restore(*state)
