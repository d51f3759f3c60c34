"""Episodes of an agent in a world: what it saw, did and got."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from everstep.data.batches import Movable


@dataclass(frozen=True, eq=False)
class EpisodeBatch(Movable):
    """E episodes of at most T actions.

    Attributes:
        observations: (E, T + 1, D) float32: what was seen before each action, and after the last one.
        actions: (E, T) int64, 0 beyond each length.
        rewards: (E, T) float32, 0 beyond each length.
        lengths: (E,) int64, the actions of each episode.
        cut: (E,) bool: whether the episode was cut off by the limit of steps, and would have gone on.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    cut: Tensor

    @property
    def rows(self) -> int:
        """E."""
        return len(self.lengths)

    @property
    def count(self) -> int:
        """E: the loss is that of an episode."""
        return len(self.lengths)
