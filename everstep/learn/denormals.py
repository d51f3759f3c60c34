"""Numbers below the smallest normal one, with which some processors compute ten times as slowly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LEAST = 5e-324
"""The smallest positive number; equal to 0 where such numbers count as 0."""


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within the block, numbers below the smallest normal one (1.2e-38 in float32) are 0 in this thread.

    Saturated attention has such weights, and the gradients of its keys then consist of such numbers: on Intel's
    processors their products take ten times as long. Threads of PyTorch that begin within the block do the same. Where
    the processor cannot, nothing changes.

    >>> with flushed_denormals():
    ...     print(float(torch.tensor(1e-39) * 0.5))
    0.0
    """
    before = _LEAST == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
