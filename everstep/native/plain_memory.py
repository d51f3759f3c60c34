"""What code may take that reads memory itself: plain numbers, where no one looks at what PyTorch does with them."""

from __future__ import annotations

import torch
from torch import _C, Tensor, nn
from torch.autograd import forward_ad

OPAQUE = "a tensor is no plain memory: a subclass of Tensor, sparse, or negated when it is read"
"""Why such code refuses tensors that are not `plain`."""
_TYPES = frozenset({Tensor, nn.Parameter})


def plain(*tensors: Tensor) -> bool:
    """Whether the memory of these, on whatever device, holds their numbers as they are."""
    for t in tensors:  # noqa: SIM110 - which is sooner than `all`
        if type(t) not in _TYPES or not _C._has_storage(t) or t.is_neg():
            return False
    return True


def version(tensor: Tensor) -> int:
    """How often it has been written over; 0 where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def transformed() -> str | None:
    """Whether derivatives or a batch are being made of PyTorch's own operations, in words; None if not."""
    if _C._are_functorch_transforms_active():
        return "it is inside of a torch.func transform, which sees through the loop that PyTorch runs"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives need the loop that PyTorch runs"
    return None


def jitted() -> bool:
    """Whether `torch.jit.trace` is looking."""
    return torch._C._get_tracing_state() is not None


def watched() -> str | None:
    """Whether what matters is PyTorch's operations, and not only their numbers, in words; None if not."""
    if _C._len_torch_dispatch_stack() > 0:
        return "a mode (TorchDispatchMode) looks at the operations of the loop that PyTorch runs"
    if torch.compiler.is_compiling() or jitted():
        return "it is being compiled or exported, which sees through the loop that PyTorch runs"
    return transformed()
