"""What code may take that reads memory itself: plain numbers, where no one looks at what PyTorch does with them."""

from __future__ import annotations

import torch


def transformed() -> str | None:
    """Whether derivatives or a batch are being made of PyTorch's own operations, in words; None if not."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it is inside of a torch.func transform, which sees through the loop that PyTorch runs"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode derivatives need the loop that PyTorch runs"
    return None
