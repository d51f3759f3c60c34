"""The choice between float32 and bfloat16 for matrix products."""

from __future__ import annotations

import torch
from torch import nn

from everstep.native import processor

FEWEST = 20_000
"""Fewest matrix weights for which bfloat16 pays on a CPU. Below, conversions cost more than the products save
(`benchmarks/precision.py`)."""


def bfloat16_is_native(device: torch.device) -> bool:
    """Whether `device` has bfloat16 instructions, rather than emulating them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and processor.has_bfloat16()


def multiplied(model: nn.Module) -> int:
    """The number of weights used in matrix products. Embeddings, which are looked up, count only if tied to a matrix.

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
    """Whether to run under bfloat16 autocast, and a notice for the user ("" if none).

    "float32": never; "bfloat16": always, with a notice if `device` emulates it; "auto": if it is native and, on a CPU,
    `weights` (see `multiplied`) is at least `FEWEST`.
    """
    native = bfloat16_is_native(device)
    if precision == "bfloat16" and not native:
        return True, f"precision=bfloat16: this {device.type} has no native bfloat16; it works, but float32 is faster"
    pays = native and (device.type != "cpu" or weights >= FEWEST)
    return precision == "bfloat16" or (precision == "auto" and pays), ""
