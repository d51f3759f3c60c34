"""What heads make of the steps of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.state import valid


def over_steps(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Σ_t of values (batch, time) over the steps within each row's length: (batch,)."""
    return values.sum(1) if lengths is None else torch.where(valid(lengths, values.shape[1]), values, 0).sum(1)
