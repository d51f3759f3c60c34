"""Checks for code that accesses memory directly: tensors must be plain, and PyTorch's operations unobserved."""

from __future__ import annotations

import torch
from torch import _C, Tensor, nn
from torch.autograd import forward_ad

OPAQUE = "a tensor is no plain memory: a subclass of Tensor, sparse, or negated when it is read"
"""The reason to refuse tensors that are not `plain`."""
_TYPES = frozenset({Tensor, nn.Parameter})


def plain(*tensors: Tensor) -> bool:
    """Whether the memory of the tensors, on any device, holds their values directly."""
    for t in tensors:  # noqa: SIM110 - faster than `all`
        if type(t) not in _TYPES or not _C._has_storage(t) or t.is_neg():
            return False
    return True


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
