"""Draws from a fixed distribution over K classes in constant time each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]


def alias_table(weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The table of the alias method (Walker 1977): of column j, the share kept, and the class of the rest.

    Each of K columns has probability 1/K. A light class (K p < 1) leaves the rest of its column to a heavy one. The
    classes are swept in order (Hübschle-Schneider & Sanders 2022, "Parallel weighted random sampling"): the i-th light
    one is filled by the heavy one whose surplus begins where the deficits before it end, which two prefix sums tell;
    a heavy one that is used up is filled by the next heavy one.

    >>> alias_table(np.array([1.0, 3.0]))
    (array([0.5, 1. ]), array([1, 1]))

    Args:
        weights: (K,), at least 0, not all 0; they need not add up to one.

    Raises:
        ValueError: weights below 0, not finite, or all 0.
    """
    total = weights.sum()
    if not np.isfinite(total) or total <= 0 or (weights < 0).any():
        raise ValueError("alias_table: expected finite weights of 0 or more, one of them above 0")
    scaled = weights * (len(weights) / total)
    kept, other = np.ones(len(weights)), np.arange(len(weights))
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    if not len(light):
        return kept, other
    deficit, surplus = np.cumsum(1 - scaled[light]), np.cumsum(scaled[heavy] - 1)
    before = np.concatenate([[0.0], deficit[:-1]])
    filler = np.minimum(np.searchsorted(surplus, before, side="right"), len(heavy) - 1)
    kept[light], other[light] = scaled[light], heavy[filler]
    # the light one during which the surplus of a heavy one ends; what rounding leaves after the last stays whole
    last = np.searchsorted(deficit, surplus[:-1], side="left")
    used_up = np.minimum(last, len(deficit) - 1)
    kept[heavy[:-1]] = np.clip(np.where(last < len(deficit), 1 + surplus[:-1] - deficit[used_up], 1.0), 0, 1)
    other[heavy[:-1]] = heavy[1:]
    return kept, other


class Proposal(nn.Module):
    """q_k ∝ max(count_k, 1)^α over K classes, with draws by the alias method.

    It is kept with the weights, so that a trained model needs no counts.

    >>> proposal = Proposal(4, 0.75)
    >>> proposal.sample(3).shape, proposal.log_q.exp().tolist()
    (torch.Size([3]), [0.25, 0.25, 0.25, 0.25])

    Args:
        classes: K.
        power: α within [0, 1]: 0 is uniform, 1 the unigram distribution; 0.75 is Mikolov's 2013.

    Buffers: `log_q` (K,), in nats; `kept` (K,) and `other` (K,), the alias table. Equal counts until `counted`.

    Raises:
        ValueError: the power is outside of [0, 1], or counts have another size, or are below 0.
    """

    log_q: Tensor
    kept: Tensor
    other: Tensor

    def __init__(self, classes: int, power: float):
        super().__init__()
        if not 0 <= power <= 1:
            raise ValueError(f"Proposal: expected a power within [0, 1], got {power}")
        self.classes, self.power = classes, power
        self.register_buffer("log_q", torch.full((classes,), -float(np.log(classes))))
        self.register_buffer("kept", torch.ones(classes))
        self.register_buffer("other", torch.arange(classes))

    def counted(self, counts: Tensor) -> None:
        """Take the counts (K,) of the classes. One that never occurs counts as once, so that it can be drawn."""
        check_counts("Proposal", counts, self.classes)
        weights = np.maximum(counts.cpu().double().numpy(), 1) ** self.power
        kept, other = alias_table(weights)
        self.log_q.copy_(torch.from_numpy(np.log(weights / weights.sum())))
        self.kept.copy_(torch.from_numpy(kept))
        self.other.copy_(torch.from_numpy(other))

    def sample(self, number: int) -> Tensor:
        """`number` classes, drawn independently: (number,) int64."""
        column = torch.randint(self.classes, (number,), device=self.kept.device)
        stays = torch.rand(number, device=self.kept.device) < self.kept[column]
        return torch.where(stays, column, self.other[column])

    def extra_repr(self) -> str:
        return f"{self.classes}, power={self.power}"


def check_counts(who: str, counts: Tensor, classes: int) -> None:
    """Refuse counts that are not one number of at least 0 for each class.

    Raises:
        ValueError: what is wrong.
    """
    if counts.shape != (classes,):
        raise ValueError(f"{who}: expected {classes} counts, one a class; got shape {tuple(counts.shape)}")
    if bool((counts < 0).any()) or not bool(counts.isfinite().all()):
        raise ValueError(f"{who}: expected finite counts of 0 or more")
