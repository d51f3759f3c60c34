"""The last words before each step of a batch, as a head with n-gram features reads them."""

from __future__ import annotations

import torch
from torch import Tensor


def recent_words(
    tokens: Tensor, before: Tensor, lengths: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The numbers + 1 of the last words at each step, the step's own first, and those after the last step.

    0 stands where there is no word: before the beginning, and before a reset.

    >>> words, after = recent_words(torch.tensor([[5, 6, 7]]), torch.zeros(1, 2, dtype=torch.int64))
    >>> words.tolist(), after.tolist()
    ([[[6.0, 0.0], [7.0, 6.0], [8.0, 7.0]]], [[8, 7]])

    Args:
        tokens: (batch, time).
        before: (batch, count) int64, what the last call gave as the second result; zeros at the beginning.
        lengths: (batch,) the steps of each row; what comes after them does not count.
        resets: (batch, time), whether nothing before a step counts.

    Returns:
        (batch, time, count) float32 and (batch, count) int64.
    """
    (rows, time), count = tokens.shape, before.shape[1]
    line = torch.cat([before.flip(1), tokens + 1], 1)
    found = line.unfold(1, count, 1)[:, 1:].flip(-1) if time else before.new_zeros(rows, 0, count)
    if resets is not None and time:
        steps = torch.arange(time, device=tokens.device)
        first = torch.where(resets, steps, -count).cummax(1).values  # the last reset at or before each step
        ages = torch.arange(count, device=tokens.device)
        found = torch.where(steps[:, None] - ages >= first[..., None], found, 0)
    states = torch.cat([before[:, None], found], 1)
    last = torch.full((rows,), time, device=tokens.device) if lengths is None else lengths
    after = states[torch.arange(rows, device=tokens.device), last]
    return found.to(torch.float32), after
