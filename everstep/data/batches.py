"""What the learner sees of a data set: batches by number."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from everstep.state import map_state


class Batch(Protocol):
    """All that `fit` knows of a batch.

    Attributes:
        count: number of targets that give a loss; whoever makes a batch counts them.

    A batch may also say its number of `rows`, which the losses of each row are then checked by.
    """

    @property
    def count(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The same batch there."""


class Movable:
    """A frozen dataclass whose tensors, and nests of tensors, move together."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""

        def move(value: object) -> object:
            return value.to(device) if isinstance(value, Tensor) else value

        moved = {field.name: map_state(move, getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class TokenBatch(Movable):
    """One step's worth of sequences of tokens, B rows of T steps.

    Attributes:
        inputs: (B, T) int64, the token read at each step.
        targets: (B, T) int64, the token to be predicted at each step.
        lengths: (B,) int64 or None (all T): steps at or beyond a row's length are padding.
        resets: (B, T) bool or None: the state is put back to the initial one before that step.
        context: the first `context` steps give no loss; they are there for the gradient (k2 > k1).
        advance: the epoch's next batch starts this many steps after this one does (state-carrying batches only).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    context: int
    advance: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.inputs)

    @property
    def count(self) -> int:
        """Number of targets that give a loss.

        Targets may also be those of the steps after `context` alone.

        Raises:
            ValueError: targets of other steps than `lengths` and `context` are counted in.
        """
        if self.targets.dim() < 2:
            raise ValueError(f"Batch: targets should be (B, T), but are {tuple(self.targets.shape)}")
        rows, steps = self.targets.shape[:2]
        if self.lengths is None and not self.context:
            return rows * steps
        time = self.inputs.shape[1]
        if steps not in (time, time - self.context):
            raise ValueError(
                f"Batch: targets are {tuple(self.targets.shape)}, but inputs have {time} steps, which `lengths` "
                "and `context` count in; for targets of another number make a subclass with a `count` of its own"
            )
        if self.lengths is None:
            return rows * (time - self.context)
        return int((self.lengths - self.context).clamp_min(0).sum())


B = TypeVar("B", bound=Batch, covariant=True)


class Batches(Protocol[B]):
    """Random access to the batches of every epoch; `batch(epoch, index)` depends on nothing but its arguments.

    `carries_state` says whether row b of batch i + 1 goes on where row b of batch i ended. `batch_size` is rows, or
    what else the place in an epoch is counted in.
    """

    batch_size: int
    carries_state: bool

    def __len__(self) -> int: ...

    def batch(self, epoch: int, index: int) -> B: ...
