"""Whether the products of a step are computed in float32 or bfloat16."""

from __future__ import annotations

import torch

from everstep.native import processor


def bfloat16_is_native(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 faster than it emulates it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and processor.has_bfloat16()


def uses_bfloat16(precision: str, device: torch.device) -> tuple[bool, str]:
    """Whether to run under bfloat16 autocast, and a notice for the user ("" if there is nothing to say).

    "float32" never; "bfloat16" always, with a notice where `device` has to emulate it; "auto" where it is native.
    """
    native = bfloat16_is_native(device)
    if precision == "bfloat16" and not native:
        return True, f"precision=bfloat16: this {device.type} has no native bfloat16; it works, but float32 is faster"
    return precision == "bfloat16" or (precision == "auto" and native), ""
