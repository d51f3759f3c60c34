"""Checks for code that accesses memory directly: tensors must be plain, and PyTorch's operations unobserved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor, nn
from torch.autograd import forward_ad

OPAQUE = "a tensor is no plain memory: a subclass of Tensor, sparse, or negated when it is read"
"""The reason to refuse tensors that are not `plain`."""
_guards: Any = _C._dynamo.guards  # its type stubs lack some of it
empty_cpu: Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor] = _guards._empty_strided_cpu
"""New memory of this size, strides and dtype, without the dispatcher, which no mode then sees."""
_TYPES = frozenset({Tensor, nn.Parameter})


def plain(*tensors: Tensor) -> bool:
    """Whether the memory of the tensors, on any device, holds their values directly."""
    for t in tensors:  # noqa: SIM110 - faster than `all`
        if type(t) not in _TYPES or not _C._has_storage(t) or t.is_neg():
            return False
    return True


def alike(x: Tensor) -> Callable[[Tensor], bool]:
    """Whether a tensor has the type, dispatch keys (device, modes), dtype, shape and strides of x, which is strided.

    It takes one call of PyTorch's, whose compiler asks the same. The strides of dimensions of size 1 are free, so that
    a row may also lie in a longer sequence.
    """
    strides = [step if size > 1 else None for size, step in zip(x.shape, x.stride(), strict=True)]
    check: Callable[[Tensor], bool] = _guards.TensorGuards(
        x, dynamic_dims_sizes=None, dynamic_dims_strides=[strides]
    ).check
    return check


def version(tensor: Tensor) -> int:
    """The tensor's version counter; 0 if there is none."""
    return 0 if tensor.is_inference() else tensor._version


def transformed() -> str | None:
    """The active transform of PyTorch's operations (derivatives, `vmap`), as text; None if there is none."""
    if _C._are_functorch_transforms_active():
        return "it is inside of a torch.func transform, which sees through the loop that PyTorch runs"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives need the loop that PyTorch runs"
    return None


def jitted() -> bool:
    """Whether `torch.jit.trace` is active."""
    return torch._C._get_tracing_state() is not None


def watched() -> str | None:
    """What observes PyTorch's operations, besides their values, as text; None if nothing does."""
    if _C._len_torch_dispatch_stack() > 0:
        return "a mode (TorchDispatchMode) looks at the operations of the loop that PyTorch runs"
    if torch.compiler.is_compiling() or jitted():
        return "it is being compiled or exported, which sees through the loop that PyTorch runs"
    return transformed()
