"""Whether the products of a step are computed in float32 or bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from everstep.native import processor

FEWEST = 20_000
"""Weights of matrices from which on bfloat16 pays on a CPU: with fewer, its conversions cost more than its products
save (`benchmarks/precision.py`)."""


def bfloat16_is_native(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 faster than it emulates it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and processor.has_bfloat16()


def multiplied(model: nn.Module) -> int:
    """How many weights stand in matrices; those of embeddings, which are looked up, only where they are tied to one.

    >>> multiplied(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)))
    12
    """
    matrices = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() >= 2
    }
    return sum(matrices.values())


def uses_bfloat16(precision: str, device: torch.device, weights: int = FEWEST) -> tuple[bool, str]:
    """Whether to run under bfloat16 autocast, and a notice for the user ("" if there is nothing to say).

    "float32" never; "bfloat16" always, with a notice where `device` has to emulate it; "auto" where it is native and,
    on a CPU, the model has `FEWEST` of the `weights` that `multiplied` counts.
    """
    native = bfloat16_is_native(device)
    if precision == "bfloat16" and not native:
        return True, f"precision=bfloat16: this {device.type} has no native bfloat16; it works, but float32 is faster"
    pays = native and (device.type != "cpu" or weights >= FEWEST)
    return precision == "bfloat16" or (precision == "auto" and pays), ""
