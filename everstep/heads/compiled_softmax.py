"""The softmax of rows of logits in one compiled pass: `native/softmax.cpp`."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.native.c_tables import Count, Integers, Numbers, NumbersOut, int64_array
from everstep.native.kernels import kernels, loops

_NAMES = {torch.float32: "f32", torch.float64: "f64"}
_LOOPS = tuple(f"es_softmax_{loop}_{numbers}" for loop in ("slopes", "log") for numbers in _NAMES.values())
_SHARE = 1 << 16
"""Number of logits above which one more thread pays off."""


class SoftmaxCall(NamedTuple):
    """What a compiled loop reads.

    Attributes:
        rows, classes: n and K.
        logits: (n, K), overwritten.
        bias: (K,), added to each row first.
        target: (n,), or null where there is none.
        smoothing: ε, one number, or null.
        loss, nats: (n,), or null.
    """

    rows: Count
    classes: Count
    logits: NumbersOut
    bias: Numbers
    target: Integers = 0
    smoothing: Numbers = 0
    loss: NumbersOut = 0
    nats: NumbersOut = 0


def available(like: Tensor) -> bool:
    """Whether there is a compiler, for a CPU tensor of float32 or float64."""
    return like.is_cpu and like.dtype in _NAMES and _library() is not None


def slopes(logits: Tensor, bias: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss with smoothing and −log p_target of each row, (n,) each; see `CrossEntropy`.

    Logits without the bias, (n, K), contiguous, become p − (1 − ε) onehot − ε / K.

    Raises:
        IndexError: a target is not among the classes.
    """
    if len(target):
        least, most = (int(bound) for bound in target.aminmax())
        if least < 0 or most >= logits.shape[1]:
            raise IndexError(f"cross_entropy: expected targets in 0 … {logits.shape[1] - 1}; got {least} to {most}")
    loss, nats = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    arrays = (target.contiguous(), logits.new_tensor([smoothing]), loss, nats)
    _run("slopes", logits, bias, *arrays)
    return loss, nats


def log_softmax(logits: Tensor, bias: Tensor) -> Tensor:
    """Logits without the bias, (n, K), contiguous, become log p; returns them."""
    _run("log", logits, bias)
    return logits


def _run(loop: str, logits: Tensor, bias: Tensor, *others: Tensor) -> None:
    library, (rows, classes) = _library(), logits.shape
    assert library is not None
    arrays = (logits, bias.detach().contiguous(), *others)
    table = SoftmaxCall(rows, classes, *(array.data_ptr() for array in arrays))
    threads = max(1, min(torch.get_num_threads(), rows, logits.numel() // _SHARE))
    name = f"es_softmax_{loop}_{_NAMES[logits.dtype]}"
    kernels(logits.dtype).parallel(getattr(library, name), int64_array(table), threads)


def _library() -> ctypes.CDLL | None:
    return loops("softmax", SoftmaxCall, _LOOPS, "the softmax is computed by several operations, slowly")
